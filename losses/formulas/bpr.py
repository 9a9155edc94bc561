"""Pairwise logistic loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Loss, RowScores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairwiseLogistic(Loss):
    """Bayesian personalised ranking: each negative is to be scored below the positive.

        loss = mean_j softplus(s_j - z)

    Paper: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI'09
    (arXiv 1205.2618). Theirs has one negative a row; here all of a row's negatives count.

    Take it: for comparison with published figures.

    Data: as `ssm`. It corrects for no popularity unless asked to: uniform negatives.

    Relations: `ssm` weights hard negatives more, by exp(s_j), and reaches more.
    """

    name = "bpr"
    when = "for comparison"
    element = "softplus"
    correction = "none"
    subtracts_positive = True

    def row(self, scores: RowScores) -> Tensor:
        return scores.reduction_R / scores.negatives_R.clamp(min=1)  # z is in the reduced scores
