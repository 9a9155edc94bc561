"""The training task: candidates gathered from every rank, corrected for frequency, and the loss.

Shapes: B local rows, E sampled candidates of this rank, S = B + E, W ranks, C columns of the score
matrix (W * S where in-batch negatives are on, else W * E, and the queue's), O columns of a tower.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from losses import (
    CandidateQueue,
    Candidates,
    Rows,
    StreamingFrequency,
    gather_with_gradient,
    gather_without_gradient,
    log_q_from_counts,
    log_q_mixture,
    log_q_uniform,
)
from trainer.config import LogQ
from trainer.phases import PhaseClock

LEAST_CLIPPED_LOG_Q = math.log(1e-6)
"""Below this TFRS clips."""
STREAMING_BUCKETS = 1 << 24
"""At most so many buckets a hash row of the streaming estimator (12 bytes each)."""

Outputs = dict[str, Tensor]
"""Detached 0-d tensors on the device: this rank's share of the loss; statistics if watched."""


class FrequencyCorrection(nn.Module):
    """log Q of candidates, for the mixture of sources that a step draws from.

    Q(j) is the chance that one drawn column is item j: `num_popular` draws a step follow the train
    counts (in-batch rows, popularity samples) and `num_uniform` are uniform over the catalog:
    Q(j) = (n_p * count(j) / total + n_u / I) / (n_p + n_u) (Yang et al. 2020), in log space and
    never clipped.

    Args:
        mode: "counts" uses the exact counts; "streaming" estimates the popular part from the ids
            of the steps so far (Yi et al. 2019), alike on every rank; "none" returns zeros;
            "counts_clipped" repeats TFRS's mistake, for `tandem compare` to show what it costs.
        total_count: sum of the counts: training rows.
    """

    def __init__(
        self, mode: LogQ, total_count: int, num_items: int, num_popular: int, num_uniform: int
    ) -> None:
        super().__init__()
        self.mode = mode
        self.total_count = total_count
        self.num_popular = num_popular
        self.log_q_uniform = log_q_uniform(num_items)
        draws = torch.tensor([num_popular, num_uniform], dtype=torch.float64)
        self.register_buffer("draws", draws, persistent=False)
        self.draws: Tensor
        self.estimator = (
            StreamingFrequency(min(4 * num_items, STREAMING_BUCKETS))
            if mode == "streaming"
            else None
        )

    def observe(self, ids_C: Tensor) -> None:
        """Let the estimator see the ids of one global batch; -1 is ignored. No collective."""
        if self.estimator is not None:
            self.estimator.update(ids_C)

    def forward(self, ids_X: Tensor, counts_X: Tensor) -> Tensor:
        """ids and train counts [X] -> log Q per draw [X], float32. No collective."""
        if self.mode == "none":
            return torch.zeros(ids_X.shape, device=ids_X.device)
        if self.num_popular == 0:
            return torch.full(ids_X.shape, self.log_q_uniform, device=ids_X.device)
        if self.estimator is not None:
            return self._mixed(self.estimator.log_q(ids_X, self.num_popular))
        return self._mixed(self._exact(counts_X))

    def statistics(self, log_q_X: Tensor, counts_X: Tensor) -> dict[str, Tensor]:
        """How far the estimate is from exact counts, in nats, where it is one. No collective."""
        if self.estimator is None or self.num_popular == 0:
            return {}
        known_X = (counts_X > 0).float()
        error_X = (log_q_X - self._mixed(self._exact(counts_X.clamp(min=1)))).abs()
        return {"estimator_error": (error_X * known_X).sum() / known_X.sum().clamp(min=1)}

    def _exact(self, counts_X: Tensor) -> Tensor:
        popular_X = log_q_from_counts(counts_X, self.total_count)
        if self.mode == "counts_clipped":
            popular_X = popular_X.clamp(min=LEAST_CLIPPED_LOG_Q)
        if self.draws[1] == 0:
            return popular_X
        return popular_X.masked_fill(counts_X == 0, -math.inf)  # can only be a uniform draw

    @property
    def log_q_certain(self) -> float:
        """log Q per draw of a column that is there by construction: its Q per step is 1."""
        return 0.0 if self.mode == "none" else -math.log(max(float(self.draws.sum()), 1.0))

    def _mixed(self, popular_X: Tensor) -> Tensor:
        if self.draws[1] == 0:
            return popular_X
        uniform_X = torch.full_like(popular_X, self.log_q_uniform)
        return log_q_mixture(torch.stack([popular_X, uniform_X]), self.draws)


class RetrievalTask(nn.Module):
    """Towers' outputs of one rank to its share of the loss.

    The global loss is the mean over all real rows of the global batch. Each rank returns
    W * (sum over its rows) / (rows of the global batch), since gradients are averaged over ranks:
    W ranks of batch B then train exactly as one rank of batch W * B does.

    Disliked rows (feedback -1, present where the loss uses them) are nobody's positives. With
    `disliked_negatives` they are columns that their own user's positive rows alone see, whatever
    the other sources: there by construction, not by sampling, and corrected as such.

    Args:
        loss: made by `losses.build_loss`.
        in_batch: the rows' own candidates are columns too, not only the sampled ones.
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
        self.history_mask = history_mask
        self.dislikes = dislikes
        self.disliked_negatives = disliked_negatives
        self.queue = queue
        self.ring = ring
        self.clock = PhaseClock(torch.device("cpu"))
        """The training loop sets its own: gathering counts as communication."""

    def forward(self, query_BO: Tensor, candidate_SO: Tensor, batch: Any) -> tuple[Tensor, Outputs]:
        """Collective: gathers candidates (with gradient), ids, counts and users from all ranks.

        With `ring` only what the streaming estimator sees is gathered, and the loss is collective.
        """
        columns = self._columns(candidate_SO, batch)
        candidates = columns
        if self.queue is not None:
            candidates = Candidates.concatenate([columns, self.queue.columns()])
        rows = self._rows(query_BO, candidate_SO, batch)
        value, statistics = self.loss(rows, candidates)
        if self.queue is not None and self.training:
            self.queue.push(self._queued(columns, query_BO.shape[0]))
        if self.loss.watched:
            count_B = batch.count_S[: query_BO.shape[0]]
            statistics |= self.correction.statistics(rows.positive_logq_B, count_B)
        return value, {**statistics, "loss": value.detach()}

    def _columns(self, candidate_SO: Tensor, batch: Any) -> Candidates:
        """Columns of all ranks, or with `ring` this rank's own."""
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
        embedding_CO, side_CK = self._gather(candidate_SO[first:], side_SK[first:])
        id_C, count_C, user_C, disliked_C = side_CK.T.contiguous()
        log_q_C = self.correction(id_C, count_C)
        visible_to_C = None
        if self.dislikes:
            log_q_C = log_q_C.masked_fill(disliked_C > 0, self.correction.log_q_certain)
        if self.disliked_negatives:
            visible_to_C = user_C.masked_fill(disliked_C == 0, -1)
            user_C = user_C.masked_fill(disliked_C > 0, -1)  # nobody's positive
        return Candidates(
            embedding_CD=embedding_CO,
            id_C=id_C,
            logq_C=log_q_C,
            user_C=user_C,
            visible_to_C=visible_to_C,
        )

    def _gather(self, local_SO: Tensor, side_SK: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates and their ids, counts, users and dislikes of all ranks (`ring`: this one's).

        The streaming estimator sees the positives among them, those of all ranks either way.
        """
        if self.ring:
            if self.training and self.correction.estimator is not None:
                self._observe(gather_without_gradient(side_SK))  # collective
            return local_SO, side_SK
        with self.clock.measure("communication"):
            side_CK = gather_without_gradient(side_SK)  # collective
            embedding_CO = gather_with_gradient(local_SO)  # collective, and in backward
        self.clock.measure_gradient("communication", local_SO, embedding_CO)
        if self.training:
            self._observe(side_CK)
        return embedding_CO, side_CK

    def _observe(self, side_CK: Tensor) -> None:
        id_C, _, user_C, disliked_C = side_CK.T
        self.correction.observe(id_C.masked_fill((user_C < 0) | (disliked_C > 0), -1))

    def _queued(self, columns: Candidates, num_rows: int) -> Candidates:
        """What the queue takes of a step: all rows' candidates, else all sampled ones.

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
        return Candidates(
            embedding_CD=columns.embedding_CD.detach()[kept],
            id_C=id_C[kept],
            logq_C=columns.logq_C[kept],
            user_C=columns.user_C[kept],
        )

    def _rows(self, query_BO: Tensor, candidate_SO: Tensor, batch: Any) -> Rows:
        num_rows = query_BO.shape[0]
        id_B, count_B = batch.item_S[:num_rows], batch.count_S[:num_rows]
        history = batch.features["history"] if self.history_mask else None
        log_q_B = self.correction(id_B, count_B)
        if self.dislikes:
            log_q_B = log_q_B.masked_fill(batch.feedback_B < 0, self.correction.log_q_certain)
        return Rows(
            query_BD=query_BO,
            positive_BD=candidate_SO[:num_rows],
            positive_id_B=id_B,
            positive_logq_B=log_q_B,
            user_B=batch.user_B,
            feedback_B=batch.feedback_B,
            weight_B=batch.weight_B * (dist.get_world_size() / batch.global_rows),
            history_values=None if history is None else history.values(),
            history_offsets=None if history is None else history.offsets()[: num_rows + 1],
        )
