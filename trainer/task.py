"""The training task: candidates gathered from every rank, corrected for frequency, and the loss.

Shapes: B local rows, E sampled candidates of this rank, S = B + E, W ranks, C columns of the score
matrix (W * S where in-batch negatives are on, else W * E, and the queue's), O columns of a tower.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from losses import Candidates, CandidateQueue, Rows, StreamingFrequency, gather_with_gradient
from losses import log_q_mixture
from trainer.config import NegativesConfig

Outputs = dict[str, Tensor]
"""Detached 0-d tensors on the device: this rank's loss share and its statistics."""


class FrequencyCorrection(nn.Module):
    """log Q of candidates, for the mixture of sources that a step draws from.

    Q(j) is the chance that one draw is item j: a share of in-batch draws, which follow the items'
    train counts (popularity sampling does as well), and a share of uniform draws:
    Q(j) = (n_b * p(j) + n_u / I) / (n_b + n_u), with p(j) = count(j) / total (Yang et al. 2020).
    It is computed in log space in float64 and never clipped.

    Args:
        mode: "counts" uses the exact p of the training split; "streaming" estimates it from the
            ids of the steps so far (Yi et al. 2019), alike on every rank; "none" returns zeros.
        num_popular: draws a step that follow popularity (in-batch rows and popularity samples).
        num_uniform: draws a step that are uniform over the catalog.
    """

    def __init__(
        self, mode: str, total_count: int, num_items: int, num_popular: int, num_uniform: int
    ) -> None:
        super().__init__()
        self.mode = mode
        self.log_total = math.log(max(total_count, 1))
        self.log_items = math.log(num_items)
        self.num_popular = num_popular
        self.num_uniform = num_uniform
        self.estimator = StreamingFrequency() if mode == "streaming" else None

    def forward(self, ids_C: Tensor, counts_C: Tensor, sampled_in_batch_C: Tensor) -> Tensor:
        """ids and train counts [C] of gathered columns -> log Q [C], float32.

        `sampled_in_batch_C` marks the columns that the stream estimator learns from. The same
        arguments on every rank give the same result; no collective.
        """
        if self.mode == "none":
            return torch.zeros(ids_C.shape, device=ids_C.device)
        if self.estimator is not None:
            self.estimator.update(ids_C[sampled_in_batch_C])
            log_p_C = self.estimator.log_q(ids_C) - math.log(max(self.num_popular, 1))
        else:
            log_p_C = counts_C.double().log() - self.log_total
        return log_q_mixture(
            log_p_C, self.num_popular, -self.log_items, self.num_uniform
        ).float()


class RetrievalTask(nn.Module):
    """Towers' outputs of one rank to its share of the loss.

    The global loss is the mean over all real rows of the global batch. Each rank returns
    W * (sum over its rows) / (rows of the global batch), since gradients are averaged over ranks:
    W ranks of batch B then train exactly as one rank of batch W * B does.
    """

    def __init__(
        self,
        loss: nn.Module,
        negatives: NegativesConfig,
        correction: FrequencyCorrection,
        queue: CandidateQueue | None,
        use_history_mask: bool,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.in_batch = negatives.in_batch
        self.correction = correction
        self.queue = queue
        self.use_history_mask = use_history_mask

    def forward(self, query_BO: Tensor, candidate_SO: Tensor, batch: Any) -> tuple[Tensor, Outputs]:
        """Collective: gathers candidates (with gradient), ids, counts and users from all ranks."""
        num_rows = query_BO.shape[0]
        first = 0 if self.in_batch else num_rows
        shared_SO = candidate_SO[first:]
        # collective: all-gather forward, reduce-scatter backward
        column_CO = gather_with_gradient(shared_SO)
        # collective: one all-gather for the integers that go with the columns
        side_SK = torch.stack([batch.item_S, batch.count_S, self._users(batch)], dim=1)[first:]
        id_C, count_C, user_C = gather_integers(side_SK).unbind(1)
        log_q_C = self.correction(id_C, count_C, user_C >= 0)
        candidates = Candidates(embedding_CD=column_CO, id_C=id_C, logq_C=log_q_C, user_C=user_C)
        if self.queue is not None:
            candidates = self.queue(candidates)
        value, stats = self.loss(self._rows(query_BO, candidate_SO, batch), candidates)
        return value, {**stats, "loss": value.detach()}

    def _users(self, batch: Any) -> Tensor:
        """[S]: the row's user for positives, -1 for sampled columns and padding."""
        extra = batch.item_S.shape[0] - batch.user_B.shape[0]
        return torch.nn.functional.pad(batch.user_B, (0, extra), value=-1)

    def _rows(self, query_BO: Tensor, candidate_SO: Tensor, batch: Any) -> Rows:
        num_rows = query_BO.shape[0]
        world_size = dist.get_world_size()
        history = batch.features["history"] if self.use_history_mask else None
        positive_id_B = batch.item_S[:num_rows]
        return Rows(
            query_BD=query_BO,
            positive_BD=candidate_SO[:num_rows],
            positive_id_B=positive_id_B,
            positive_logq_B=self.correction(
                positive_id_B, batch.count_S[:num_rows], torch.zeros_like(positive_id_B).bool()
            ),
            user_B=batch.user_B,
            feedback_B=batch.feedback_B,
            weight_B=batch.weight_B * (world_size / batch.global_rows),
            history=None if history is None else (history.values(), history.offsets()),
        )


def gather_integers(local_SK: Tensor) -> Tensor:
    """[S, K] int64 of every rank -> [W * S, K], in rank order. Collective: all-gather."""
    gathered = local_SK.new_empty(local_SK.shape[0] * dist.get_world_size(), local_SK.shape[1])
    dist.all_gather_into_tensor(gathered, local_SK.contiguous())
    return gathered
