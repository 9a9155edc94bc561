"""The loss of any part of the rows, from their reduction: what a walk differentiates a stripe by.

Shapes: B rows, R rows of a stripe.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from losses.formulas.formula import Loss, RowScores
from losses.hardness import Hardness
from losses.pairs import log_add_exp
from losses.rows import Rows


@dataclass(frozen=True)
class RowTerms:
    """The `RowLoss` of the walk.

    Row inputs, in order: positive score, its temperature, the ratio of the temperatures, and, if
    there are columns that one user alone sees, their reduction.
    """

    loss: Loss
    rows: Rows
    weight_B: Tensor
    restricted_count_B: Tensor | None
    hardness: Hardness | None = None
    threshold_B: Tensor | None = None

    def losses(
        self, reduction_R: Tensor, negatives_R: Tensor, inputs: tuple[Tensor, ...], part: slice
    ) -> Tensor:
        """[R] weighted losses of the rows `part`."""
        if self.restricted_count_B is not None:
            combine = log_add_exp if self.loss.sums_logarithm else torch.add
            reduction_R = combine(reduction_R, inputs[3])
            negatives_R = negatives_R + self.restricted_count_B[part]
        if self.hardness is not None:
            reduction_R = self.hardness.of_sharpened(reduction_R, part)
        weight_R = self.weight_B[part]
        counts_R = weight_R != 0  # padding rows may hold anything, infinities and NaN too
        log_q_R = self.rows.positive_logq_B[part].to(inputs[0].dtype)
        scores = RowScores(
            positive_R=inputs[0],
            reduction_R=reduction_R,
            negatives_R=negatives_R,
            positive_logq_R=torch.where(counts_R, log_q_R, 0.0),
            disliked_R=self.rows.feedback_B[part] < 0,
            temperature_R=inputs[1],
            temperature_ratio_R=inputs[2],
            threshold_R=self._thresholds(inputs[0], part),
        )
        return torch.where(counts_R, row_losses(self.loss, scores), 0.0) * weight_R

    def _thresholds(self, positive_R: Tensor, part: slice) -> Tensor:
        if self.threshold_B is None:
            return torch.zeros_like(positive_R)
        return self.threshold_B[part].to(positive_R.dtype)

    def __call__(
        self, reduction_R: Tensor, negatives_R: Tensor, inputs: tuple[Tensor, ...], part: slice
    ) -> Tensor:
        """Their sum."""
        return self.losses(reduction_R, negatives_R, inputs, part).sum()


def row_losses(loss: Loss, scores: RowScores) -> Tensor:
    """[R] losses; rows whose LSE is -inf (all columns masked) give 0 and no gradient, not NaN."""
    empty_R = scores.reduction_R == -math.inf
    stand_in_R = torch.where(empty_R, scores.positive_R.detach(), scores.reduction_R)
    finite = replace(scores, reduction_R=stand_in_R)
    return torch.where(empty_R, 0.0, loss.row(finite))
