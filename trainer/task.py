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

STREAMING_BUCKETS = 1 << 24
"""At most so many buckets a hash row of the streaming estimator (12 bytes each)."""

Outputs = dict[str, Tensor]
"""Detached 0-d tensors on the device: this rank's loss share and its statistics."""


class FrequencyCorrection(nn.Module):
    """log Q of candidates, for the mixture of sources that a step draws from.

    Q(j) is the chance that one drawn column is item j: `num_popular` draws a step follow the train
    counts (in-batch rows, popularity samples) and `num_uniform` are uniform over the catalog:
    Q(j) = (n_p * count(j) / total + n_u / I) / (n_p + n_u) (Yang et al. 2020), in log space and
    never clipped.

    Args:
        mode: "counts" uses the exact counts; "streaming" estimates the popular part from the ids
            of the steps so far (Yi et al. 2019), alike on every rank; "none" returns zeros.
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

    Disliked rows (feedback -1, present where the loss uses them) are columns too, seen by their own
    user alone. They are there by construction, not by sampling, and corrected as such.

    Args:
        loss: made by `losses.build_loss`.
        in_batch: the rows' own candidates are columns too, not only the sampled ones.
        history_mask: hand the rows' histories to the loss, for its mask.
        dislikes: the batch holds disliked rows.
        queue: candidates of earlier steps as further columns.
    """

    def __init__(
        self,
        loss: nn.Module,
        correction: FrequencyCorrection,
        in_batch: bool,
        history_mask: bool,
        dislikes: bool = False,
        queue: CandidateQueue | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.correction = correction
        self.in_batch = in_batch
        self.history_mask = history_mask
        self.dislikes = dislikes
        self.queue = queue
        self.clock = PhaseClock(torch.device("cpu"))
        """The training loop sets its own: gathering counts as communication."""

    def forward(self, query_BO: Tensor, candidate_SO: Tensor, batch: Any) -> tuple[Tensor, Outputs]:
        """Collective: gathers candidates (with gradient), ids, counts and users from all ranks."""
        gathered = self._gather(candidate_SO, batch)
        candidates = gathered
        if self.queue is not None:
            candidates = Candidates.concatenate([gathered, self.queue.columns()])
        rows = self._rows(query_BO, candidate_SO, batch)
        value, statistics = self.loss(rows, candidates)
        if self.queue is not None and self.training:
            self.queue.push(self._queued(gathered, query_BO.shape[0], batch.item_S.shape[0]))
        count_B = batch.count_S[: query_BO.shape[0]]
        frequency = self.correction.statistics(rows.positive_logq_B, count_B)
        return value, {**statistics, **frequency, "loss": value.detach()}

    def _gather(self, candidate_SO: Tensor, batch: Any) -> Candidates:
        num_rows = batch.user_B.shape[0]
        first = 0 if self.in_batch else num_rows
        # Sampled columns are nobody's positives: user -1.
        extra = batch.item_S.shape[0] - num_rows
        user_S = F.pad(batch.user_B, (0, extra), value=-1)
        feedback_S = F.pad(batch.feedback_B.long(), (0, extra), value=1)
        local_SK = torch.stack([batch.item_S, batch.count_S, user_S, feedback_S], dim=1)[first:]
        local_SO = candidate_SO[first:]
        with self.clock.measure("communication"):
            side_KC = gather_without_gradient(local_SK).T.contiguous()  # collective
            embedding_CO = gather_with_gradient(local_SO)  # collective, and in backward
        self.clock.measure_gradient("communication", local_SO, embedding_CO)
        id_C, count_C, user_C, feedback_C = side_KC
        disliked_C = feedback_C < 0
        if self.training:
            self.correction.observe(id_C.masked_fill((user_C < 0) | disliked_C, -1))
        log_q_C = self.correction(id_C, count_C)
        visible_to_C = None
        if self.dislikes:
            log_q_C = log_q_C.masked_fill(disliked_C, self.correction.log_q_certain)
            visible_to_C = user_C.masked_fill(~disliked_C, -1)
            user_C = user_C.masked_fill(disliked_C, -1)  # nobody's positive
        return Candidates(
            embedding_CD=embedding_CO,
            id_C=id_C,
            logq_C=log_q_C,
            user_C=user_C,
            visible_to_C=visible_to_C,
        )

    def _queued(self, gathered: Candidates, num_rows: int, num_bags: int) -> Candidates:
        """What the queue takes of a step: all rows' candidates, else all sampled ones.

        In an order that is the same for any number of ranks: which columns the queue drops
        depends on it.
        """
        width = num_rows if self.in_batch else num_bags - num_rows
        stride = num_bags if self.in_batch else width
        every = torch.arange(gathered.id_C.shape[0], device=gathered.id_C.device)
        kept = every.view(-1, stride)[:, :width].reshape(-1)
        return Candidates(
            embedding_CD=gathered.embedding_CD.detach()[kept],
            id_C=gathered.id_C[kept],
            logq_C=gathered.logq_C[kept],
            user_C=gathered.user_C[kept],
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
