"""The training task: candidates gathered from every rank, corrected for frequency, and the loss.

Shapes: B local rows, E sampled candidates of this rank, S = B + E, W ranks, C columns of the score
matrix (W * S where in-batch negatives are on, else W * E, and the queue's), O columns of a tower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from losses import (
    CandidateQueue,
    Candidates,
    Positives,
    Rows,
    gather_with_gradient,
    gather_without_gradient,
    stand_in,
)
from trainer.data.candidates import Distribution
from trainer.model.log_q import POPULAR, UNIFORM, FrequencyCorrection
from trainer.observe.phases import PhaseClock

Outputs = dict[str, Tensor]
"""Detached 0-d tensors on the device: this rank's share of the loss; statistics if watched."""


@dataclass(frozen=True)
class Gathered:
    """A step's candidates that are columns, of all ranks; in a ring walk this rank's own."""

    embedding_CO: Tensor
    id_C: Tensor
    count_C: Tensor
    user_C: Tensor
    is_disliked_C: Tensor
    draws: Tensor
    """Columns by law (trainer/model/log_q.py), of all ranks in a ring walk too."""


class RetrievalTask(nn.Module):
    """Towers' outputs of one rank to its share of the loss.

    The global loss is the weighted mean over all rows of the global batch. Each rank returns
    W * (weighted sum over its rows) / (weights of the global batch), since gradients are averaged
    over ranks: W ranks of batch B then train exactly as one rank of batch W * B does.

    A row of weight w is w rows, and still one column: columns are draws from the rows, whatever
    those weigh, and log Q is that of a draw (docs/decisions/0109-weights-are-of-rows.md).

    Disliked rows (feedback -1, present where the loss uses them) are nobody's positives. With
    `disliked_negatives` they are columns that their own user's positive rows alone see, whatever
    the other sources: there by construction, not by sampling, and corrected as such.

    Args:
        loss: made by `losses.build_loss`.
        in_batch: the rows' own candidates are columns too, not only the sampled ones.
        sampled_by: what further candidates are drawn by.
        history_mask: hand the rows' histories to the loss, for its mask.
        dislikes: the batch holds disliked rows.
        disliked_negatives: disliked rows' candidates are columns of their user (needs `dislikes`).
        queue: candidates of earlier steps as further columns.
        ring: candidates are not gathered; the loss walks one rank's at a time.
    """

    def __init__(
        self,
        loss: nn.Module,
        correction: FrequencyCorrection,
        in_batch: bool,
        sampled_by: Distribution,
        history_mask: bool,
        dislikes: bool = False,
        disliked_negatives: bool = False,
        queue: CandidateQueue | None = None,
        ring: bool = False,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.correction = correction
        self.in_batch = in_batch
        self.sampled_law = POPULAR if sampled_by == "popularity" else UNIFORM
        self.history_mask = history_mask
        self.dislikes = dislikes
        self.disliked_negatives = disliked_negatives
        self.queue = queue
        self.ring = ring
        self.clock = PhaseClock(torch.device("cpu"))
        """The training loop sets its own: gathering counts as communication."""

    def forward(self, query_BO: Tensor, candidate_SO: Tensor, batch: Any) -> tuple[Tensor, Outputs]:
        """Collective: gathers candidates (with gradient), ids, counts and users from all ranks.

        With `ring` no candidate is gathered, and the loss is collective.
        """
        batch = with_global_weight(batch)  # collective, of data with weights
        num_rows = query_BO.shape[0]
        positives = self._other_positives(batch)  # collective
        gathered = self._gather(candidate_SO, batch)  # collective
        live = draws = gathered.draws
        if self.queue is not None:
            draws = live + self._queue_draws(self.queue)
        columns = replace(self._columns(gathered, draws), positives=positives)
        candidates = columns
        if self.queue is not None:
            surplus_C = self.correction.surplus(gathered.count_C, draws, live)
            surplus_C = surplus_C.masked_fill(gathered.is_disliked_C, 1.0)  # never queued
            columns = replace(columns, embedding_CD=stand_in(gathered.embedding_CO, surplus_C))
            log_q_K = self.correction(self.queue.ids(), self.queue.count_K, draws)
            candidates = Candidates.concatenate([columns, self.queue.columns(log_q_K)])
        rows = self._rows(query_BO, candidate_SO, batch, draws)
        value, statistics = self.loss(rows, candidates)
        if self.queue is not None and self.training:
            self.queue.push(*self._queued(columns, gathered.count_C, num_rows))
        if self.loss.watched:
            count_B = batch.count_S[:num_rows]
            statistics |= self.correction.statistics(rows.positive_logq_B, count_B, draws)
        return value, {**statistics, "loss": value.detach()}

    def _other_positives(self, batch: Any) -> Positives | None:
        """The global batch's positives where columns do not tell of them. Collective if needed.

        The streaming estimator sees them: they follow popularity whatever the columns are.
        """
        estimator = self.correction.estimator if self.training else None
        masked = self.loss.mask_same_user and not self.in_batch
        if estimator is None and not masked:
            return None
        is_none_B = (batch.user_B < 0) | (batch.feedback_B < 0)
        pair_B2 = torch.stack([batch.user_B, batch.item_S[: batch.user_B.shape[0]]], dim=1)
        pair_B2 = pair_B2.masked_fill(is_none_B[:, None], -1)
        user_P, id_P = gather_without_gradient(pair_B2).T.contiguous()  # collective
        if estimator is not None:
            estimator.update(id_P)
        return Positives(user_P, id_P) if masked else None

    def _gather(self, candidate_SO: Tensor, batch: Any) -> Gathered:
        """Columns of all ranks, with `ring` this rank's own. Collective."""
        num_rows = batch.user_B.shape[0]
        # Sampled columns are nobody's positives: user -1.
        extra = batch.item_S.shape[0] - num_rows
        user_S = F.pad(batch.user_B, (0, extra), value=-1)
        disliked_S = F.pad(batch.feedback_B < 0, (0, extra), value=False)
        hidden_S = torch.zeros_like(disliked_S)
        if not self.in_batch:
            hidden_S[:num_rows] = True
        # Disliked rows are nobody's columns, or their own user's.
        hidden_S = torch.where(disliked_S, not self.disliked_negatives, hidden_S)
        id_S = batch.item_S.masked_fill(hidden_S, -1)
        side_SK = torch.stack([id_S, batch.count_S, user_S, disliked_S.long()], dim=1)
        first = 0 if self.in_batch or self.disliked_negatives else num_rows
        local_XO, side_XK = candidate_SO[first:], side_SK[first:]
        if self.ring:
            embedding_CO, side_CK = local_XO, side_XK
        else:
            with self.clock.measure("communication"):
                side_CK = gather_without_gradient(side_XK)  # collective
                embedding_CO = gather_with_gradient(local_XO)  # collective, and in backward
            self.clock.measure_gradient("communication", local_XO, embedding_CO)
        id_C, count_C, user_C, disliked_C = side_CK.T.contiguous()
        shown_WX = ((id_C >= 0) & (disliked_C == 0)).view(-1, side_XK.shape[0])
        draws = self._draws(shown_WX, num_rows - first)
        return Gathered(embedding_CO, id_C, count_C, user_C, disliked_C > 0, draws)

    def _draws(self, shown_WX: Tensor, rows: int) -> Tensor:
        """[2] columns by law. Collective with `ring`: all-reduce of two numbers."""
        of_rows, sampled = shown_WX[:, :rows].sum(), shown_WX[:, rows:].sum()
        follows = self._by_law(of_rows, POPULAR) + self._by_law(sampled, self.sampled_law)
        if self.ring:
            dist.all_reduce(follows)  # collective
        return follows

    def _queue_draws(self, queue: CandidateQueue) -> Tensor:
        """[2] the queue's columns by law: that of the rows if they are columns."""
        return self._by_law(
            (queue.ids() >= 0).sum(), POPULAR if self.in_batch else self.sampled_law
        )

    def _by_law(self, number: Tensor, law: int) -> Tensor:
        nothing = torch.zeros_like(number)
        return torch.stack([number, nothing] if law == POPULAR else [nothing, number]).double()

    def _columns(self, gathered: Gathered, draws: Tensor) -> Candidates:
        log_q_C = self.correction(gathered.id_C, gathered.count_C, draws)
        user_C, visible_to_C, disliked_C = gathered.user_C, None, gathered.is_disliked_C
        if self.dislikes:
            log_q_C = torch.where(disliked_C, self.correction.certain(draws), log_q_C)
        if self.disliked_negatives:
            visible_to_C = user_C.masked_fill(~disliked_C, -1)
            user_C = user_C.masked_fill(disliked_C, -1)  # nobody's positive
        return Candidates(
            embedding_CD=gathered.embedding_CO,
            id_C=gathered.id_C,
            logq_C=log_q_C,
            user_C=user_C,
            visible_to_C=visible_to_C,
        )

    def _queued(
        self, columns: Candidates, count_C: Tensor, num_rows: int
    ) -> tuple[Candidates, Tensor]:
        """What the queue takes of a step: all rows' candidates, else all sampled ones; their
        counts.

        In an order that is the same for any number of ranks: which columns the queue drops
        depends on it. Columns that one user alone sees are padding there.
        """
        by_rank = torch.arange(columns.id_C.shape[0], device=columns.id_C.device)
        by_rank = by_rank.view(dist.get_world_size(), -1)
        if self.in_batch:
            kept = by_rank[:, :num_rows].reshape(-1)
        else:
            kept = by_rank[:, num_rows if self.disliked_negatives else 0 :].reshape(-1)
        id_C = columns.id_C
        if columns.visible_to_C is not None:
            id_C = id_C.masked_fill(columns.visible_to_C >= 0, -1)
        queued = Candidates(
            embedding_CD=columns.embedding_CD.detach()[kept],
            id_C=id_C[kept],
            logq_C=columns.logq_C[kept],
            user_C=columns.user_C[kept],
        )
        return queued, count_C[kept]

    def _rows(self, query_BO: Tensor, candidate_SO: Tensor, batch: Any, draws: Tensor) -> Rows:
        num_rows = query_BO.shape[0]
        id_B, count_B = batch.item_S[:num_rows], batch.count_S[:num_rows]
        history = batch.features["history"] if self.history_mask else None
        log_q_B = self.correction(id_B, count_B, draws)
        if self.dislikes:
            log_q_B = torch.where(batch.feedback_B < 0, self.correction.certain(draws), log_q_B)
        return Rows(
            query_BD=query_BO,
            positive_BD=candidate_SO[:num_rows],
            positive_id_B=id_B,
            positive_logq_B=log_q_B,
            user_B=batch.user_B,
            feedback_B=batch.feedback_B,
            weight_B=batch.weight_B * (dist.get_world_size() / batch.global_weight),
            history_values=None if history is None else history.values(),
            history_offsets=None if history is None else history.offsets()[: num_rows + 1],
        )


def with_global_weight(batch: Any) -> Any:
    """The batch, told the sum of all ranks' weights. Collective where it is not told already: an
    all-reduce of one number a step, for data with weights alone."""
    if batch.global_weight is not None:
        return batch
    total = batch.weight_B.sum()
    dist.all_reduce(total)  # collective
    return replace(batch, global_weight=total.clamp(min=torch.finfo(total.dtype).tiny))
