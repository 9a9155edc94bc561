"""Sampled softmax with dislikes among the negatives, and pushed down besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Loss, RowScores, Weight
from losses.formulas.ntr import not_to_recommend_row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SoftmaxNotToRecommend(Loss):
    """`ssm` with the user's disliked items among the negatives, plus `ntr`'s half over them.

        positive row:  softplus(LSE - z), LSE over the user's disliked items too
        disliked row:  alpha * softplus(z - LSE)

    Paper: Wang et al., RecSys'23 (arXiv 2308.12256), as the two are used together in practice.

    Take it: explicit dislikes that say what a user would rather have than this.

    Data: as `ntr`. A user's disliked items are columns by construction, not by sampling: no log Q
    is subtracted from them.

    Relations: `ntr` has the second half alone. With alpha = 0 dislikes are hard negatives of `ssm`.
    """

    name = "ssm_ntr"
    when = "explicit dislikes, as negatives of their user too"
    counts_disliked = True

    alpha: Weight = 1.0
    """Weight of the NTR half, disliked rows pushed down; the SSM half has the user's disliked items
    among the negatives."""

    def row(self, scores: RowScores) -> Tensor:
        return not_to_recommend_row(scores, self.alpha)
