"""Softmax on positives, its complement on disliked items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Loss, RowScores, Weight

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NotToRecommend(Loss):
    """Softmax on positive rows; on disliked rows the log of what the item does not get.

        positive row:  -log p       = softplus(LSE - z)
        disliked row:  -log(1 - p)  = softplus(z - LSE), times `disliked_weight`

    Paper: Wang et al., "Learning from Negative User Feedback and Measuring Responsiveness for
    Sequential Recommenders", RecSys'23 (arXiv 2308.12256). Written as softplus it is stable;
    log1p(-p) is not.

    Take it: explicit dislikes, or items that must not be shown (safety): they are pushed out of
    the top, however near the user they are.

    Data: pairs with feedback, 1 or -1 (thumbs, skips, low ratings).

    Relations: `ssm` without dislikes. Disliked items are nobody's negatives here: with `ssm_ntr`
    they are their own user's.
    """

    name = "ntr"
    when = "explicit dislikes, or items that must not be shown"
    counts_disliked = True
    sees_disliked = False

    disliked_weight: Weight = 1.0
    """Weight of the disliked rows."""

    def row(self, scores: RowScores) -> Tensor:
        return not_to_recommend_row(scores, self.disliked_weight)


def not_to_recommend_row(scores: RowScores, disliked_weight: float) -> Tensor:
    """-log p of positive rows, -log(1 - p) of disliked ones."""
    import torch
    from torch.nn.functional import softplus

    difference_R = scores.reduction_R - scores.positive_R
    disliked_part_R = disliked_weight * softplus(-difference_R)
    return torch.where(scores.disliked_R, disliked_part_R, softplus(difference_R))
