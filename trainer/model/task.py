"""The training task: candidates gathered from every rank, corrected for frequency, and the loss.

Shapes: B local rows, E sampled candidates of this rank, S = B + E, W ranks, U candidates that this
rank encodes, X that it sends, C columns of the score matrix (W * X, and the queue's), O of a tower,
P rows or further candidates of all ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
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
from trainer.data.packing import Packed
from trainer.loader.column_plan import ColumnPlan, Entries, make_plan, side_of, weights_of
from trainer.model.log_q import POPULAR, UNIFORM, FrequencyCorrection
from trainer.observe.phases import PhaseClock

Outputs = dict[str, Tensor]
"""Detached 0-d tensors on the device: this rank's share of the loss; statistics if watched."""


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
        distinct: equal columns are one, encoded and sent once (trainer/loader/column_plan.py).
        mined: rows have mined candidates, which are columns as disliked ones are.
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
        distinct: bool = True,
        mined: bool = False,
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
        self.distinct, self.mined = distinct, mined
        self.of_users = disliked_negatives or mined
        """Whether there are columns that one user alone sees."""
        self.clock = PhaseClock(torch.device("cpu"))
        """The training loop sets its own: gathering counts as communication."""

    def planned(self, batch: Any) -> Any:
        """The batch with the plan of its columns, and the weight of the global batch. Collective,
        unless it has them: an all-gather of 40 bytes a candidate (of sequences first an all-reduce
        of their number of bags). Plan a batch while it is on the
        host: on a device the plan waits for it."""
        if batch.plan is not None:
            return batch
        if batch.sequences is not None:  # ranks look up as many bags, and have other items
            most = torch.tensor(batch.item_S.shape[0], device=batch.item_S.device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)  # collective
            batch = batch.with_bags(int(most))
        side_NK = gather_without_gradient(side_of(batch))  # collective
        plan = make_plan(
            side_NK,
            dist.get_world_size(),
            dist.get_rank(),
            batch.user_B.shape[0],
            in_batch=self.in_batch,
            disliked_negatives=self.disliked_negatives,
            mined=self.mined,
            distinct=self.distinct,
            told=bool(
                self.loss.mask_same_user or self.queue or self.correction.estimator is not None
            ),
        )
        weight = batch.global_weight
        if weight is None:
            total = weights_of(side_NK).double().sum()
            weight = total.float().clamp(min=torch.finfo(torch.float32).tiny)
        batch = replace(batch, plan=plan, global_weight=weight)
        return batch.pin_memory() if batch.item_S.is_pinned() else batch

    def forward(self, query_BO: Tensor, candidate_UO: Tensor, batch: Any) -> tuple[Tensor, Outputs]:
        """The queries of the batch's rows, or that n times over where several positions predict
        each row's item, and the candidates that its plan says.

        Collective: gathers candidates, with gradient; with `ring` the loss passes them round.
        """
        plan: ColumnPlan = batch.plan
        if self.correction.estimator is not None and self.training:
            assert plan.positives is not None
            # It sees all rows: they follow popularity whatever the columns are.
            self.correction.estimator.update(plan.positives.id_P)
        embedding_CO = self._gather(candidate_UO, plan)  # collective
        live = draws = self._by_source(plan.drawn)
        if self.queue is not None:
            draws = live + self._queue_draws(self.queue)
        candidates = columns = self._columns(embedding_CO, plan, draws)
        if self.queue is not None:
            surplus_C = self.correction.surplus(plan.count_C, draws, live)
            surplus_C = surplus_C.masked_fill(plan.visible_to_C >= 0, 1.0)  # never queued
            columns = replace(columns, embedding_CD=stand_in(embedding_CO, surplus_C))
            log_q_K = self.correction(self.queue.ids(), self.queue.count_K, draws)
            candidates = Candidates.concatenate([columns, self.queue.columns(log_q_K)])
        own_BO = query_BO[: batch.user_B.shape[0]]
        rows = self._rows(own_BO, candidate_UO, batch, draws)
        rows = several_times(rows, query_BO, batch.sequences)
        value, statistics = self.loss(rows, candidates)
        if self.queue is not None and self.training:
            entries = plan.positives if self.in_batch else plan.extras
            assert entries is not None
            self.queue.push(*self._queued(self.queue, embedding_CO, entries))
        if self.loss.watched:
            count_B = batch.count_S[: batch.user_B.shape[0]]
            log_q_B = rows.positive_logq_B[: len(count_B)]
            statistics |= self.correction.statistics(log_q_B, count_B, draws)
        return value, {**statistics, "loss": value.detach()}

    def _gather(self, candidate_UO: Tensor, plan: ColumnPlan) -> Tensor:
        """Columns of all ranks, with `ring` this rank's own. Collective."""
        sent_XO = candidate_UO.index_select(0, plan.sent_X)
        if self.ring:
            return sent_XO
        with self.clock.measure("communication"):
            embedding_CO = gather_with_gradient(sent_XO)  # collective, and in backward
        self.clock.measure_gradient("communication", sent_XO, embedding_CO)
        return embedding_CO

    def _by_source(self, drawn: Tensor) -> Tensor:
        """[2] columns by law, from those of rows and of further candidates."""
        of_rows, sampled = drawn.unbind()
        return self._by_law(of_rows, POPULAR) + self._by_law(sampled, self.sampled_law)

    def _queue_draws(self, queue: CandidateQueue) -> Tensor:
        """[2] the queue's columns by law: that of the rows if they are columns."""
        return self._by_law(
            (queue.ids() >= 0).sum(), POPULAR if self.in_batch else self.sampled_law
        )

    def _by_law(self, number: Tensor, law: int) -> Tensor:
        nothing = torch.zeros_like(number)
        return torch.stack([number, nothing] if law == POPULAR else [nothing, number]).double()

    def _columns(self, embedding_CO: Tensor, plan: ColumnPlan, draws: Tensor) -> Candidates:
        own = plan.own(dist.get_rank()) if self.ring else slice(None)
        id_C, visible_to_C = plan.id_C[own], plan.visible_to_C[own]
        log_q_C = self.correction(id_C, plan.count_C[own], draws)
        if self.of_users:
            log_q_C = torch.where(visible_to_C >= 0, self.correction.certain(draws), log_q_C)
        positives = None
        if self.loss.mask_same_user:
            rows = plan.positives
            assert rows is not None
            positives = Positives(rows.user_P, rows.id_P, rows.column_P, rows.weight_P)
        return Candidates(
            embedding_CD=embedding_CO,
            id_C=id_C,
            logq_C=log_q_C,
            user_C=torch.full_like(id_C, -1),
            visible_to_C=visible_to_C if self.of_users else None,
            positives=positives,
            copies_C=plan.copies_C[own] if self.distinct else None,
        )

    def _queued(
        self, queue: CandidateQueue, embedding_CO: Tensor, entries: Entries
    ) -> tuple[Candidates, Tensor]:
        """What the queue takes of a step: all rows' candidates, else all sampled ones; their
        counts.

        One by one, in an order that is the same for any number of ranks: which columns the queue
        drops depends on it. Those that are no columns, or one user's alone, are padding there.
        """
        last = slice(-queue.num_columns, None)
        column_P = entries.column_P[last]
        id_P = torch.where(column_P >= 0, entries.id_P[last], -1)
        queued = Candidates(
            embedding_CD=embedding_CO.detach().index_select(0, column_P.clamp(min=0)),
            id_C=id_P,
            logq_C=torch.zeros(id_P.shape, device=id_P.device),
            user_C=entries.user_P[last],
        )
        return queued, entries.count_P[last]

    def _rows(self, query_BO: Tensor, candidate_UO: Tensor, batch: Any, draws: Tensor) -> Rows:
        num_rows = query_BO.shape[0]
        id_B, count_B = batch.item_S[:num_rows], batch.count_S[:num_rows]
        values, offsets = self._histories(batch, num_rows) if self.history_mask else (None, None)
        log_q_B = self.correction(id_B, count_B, draws)
        if self.dislikes:
            log_q_B = torch.where(batch.feedback_B < 0, self.correction.certain(draws), log_q_B)
        return Rows(
            query_BD=query_BO,
            positive_BD=candidate_UO.index_select(0, batch.plan.place_B),
            positive_id_B=id_B,
            positive_logq_B=log_q_B,
            user_B=batch.user_B,
            feedback_B=batch.feedback_B,
            weight_B=batch.weight_B * (dist.get_world_size() / batch.global_weight),
            history_values=values,
            history_offsets=offsets,
        )

    def _histories(self, batch: Any, num_rows: int) -> tuple[Tensor, Tensor]:
        """Items that each row's user has met: (values, offsets [B + 1])."""
        if batch.sequences is not None:
            return batch.sequences.history_values, batch.sequences.history_offsets
        history = batch.features["history"]
        # Rows of tables may be shared: items are told apart beside them.
        item_V = history.values() if batch.history_V is None else batch.history_V
        return item_V, history.offsets()[: num_rows + 1]


def several_times(rows: Rows, query_nBO: Tensor, sequences: Packed | None) -> Rows:
    """Rows whose items several positions predict (n times B queries), as so many rows. Together
    they weigh what they did; of a disliked item, the position before it alone."""
    number = len(query_nBO) // max(len(rows.user_B), 1)
    if number <= 1:
        return rows
    assert sequences is not None
    share_nB = sequences.share_of_targets(number).view(number, -1)
    first_nB = torch.zeros_like(share_nB).index_fill_(0, share_nB.new_zeros(1).long(), 1.0)
    share_nB = torch.where(rows.feedback_B < 0, first_nB, share_nB)
    repeated: dict[str, Tensor] = {
        name: torch.cat([getattr(rows, name)] * number)
        for name in ("positive_BD", "positive_id_B", "positive_logq_B", "user_B", "feedback_B")
    }
    values, offsets = rows.history_values, rows.history_offsets
    if values is not None and offsets is not None:
        values = torch.cat([values] * number)
        shift_n = torch.arange(number, device=offsets.device).unsqueeze(1) * offsets[-1]
        offsets = torch.cat([offsets[:1], (offsets[1:] + shift_n).flatten()])
    return replace(
        rows,
        query_BD=query_nBO,
        **repeated,
        weight_B=(rows.weight_B * share_nB).flatten(),
        history_values=values,
        history_offsets=offsets,
    )
