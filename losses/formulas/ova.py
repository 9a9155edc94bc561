"""One-vs-all logistic loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.ccl import negatives_part
from losses.formulas.formula import Factor, Loss, RowScores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OneVsAll(Loss):
    """A logistic regression a pair: positives are 1, negatives 0.

        loss = softplus(-z) + sum_j softplus(s_j)         with negative_weight: w / N * sum_j

    Elsewhere: binary cross entropy, the pointwise loss, NCF's loss. Bayes- but not H-consistent
    (KDD'25): with a limited model its best scores need not rank best.

    Take it: for comparison, or where a score has to be a probability of a pair.

    Data: as `ssm`, with uniform negatives: it corrects for no popularity unless asked to.

    Relations: `bpr` compares each negative with the positive instead of with 0.
    """

    name = "ova"
    when = "for comparison"
    element = "softplus"
    correction = "none"
    needs_uniform = True
    settings = (
        ({"temperature": 0.1, "negative_weight": None}, 1.0),
        ({"temperature": 0.2, "negative_weight": None}, 1.0),
        ({"temperature": 0.1, "negative_weight": 4.0}, 1.0),
        ({"temperature": 0.1, "negative_weight": None}, 0.5),
        ({"temperature": 0.05, "negative_weight": 4.0}, 1.0),
        ({"temperature": 0.1, "negative_weight": 32.0}, 1.0),
    )

    negative_weight: Factor | None = None
    """w of w/N over the negatives' sum; None: a plain sum."""

    def row(self, scores: RowScores) -> Tensor:
        from torch.nn.functional import softplus

        return softplus(-scores.positive_R) + negatives_part(scores, self.negative_weight)
