"""Cosine contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from losses.formulas.formula import Factor, Limits, Loss, RowScores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CosineContrastive(Loss):
    """Positives drawn to a cosine of 1, negatives pushed below a margin, on cosines as they are.

        loss = relu(1 - s+) + w / N * sum_j relu(s_j - margin)

    Paper: Mao et al., "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", CIKM'21
    (arXiv 2109.12613).

    Take it: small catalogs, clean implicit data, hundreds of uniform negatives a row. Most
    negatives cost nothing, so it wants many of them and a tuned margin (0.2 to 0.9).

    Data: as `ssm`, with uniform negatives: it corrects for no popularity.

    Relations: none has its form; it has no temperature and no log Q.
    """

    name = "ccl"
    when = "clean implicit data, small catalogs, many uniform negatives"
    element = "hinge"
    correction = "none"
    corrections = ("none",)
    usual_temperature = None
    needs_uniform = True
    settings = (
        ({"margin": 0.4, "negative_weight": 150.0}, 1.0),
        ({"margin": 0.7, "negative_weight": 150.0}, 1.0),
        ({"margin": 0.9, "negative_weight": 150.0}, 1.0),
        ({"margin": 0.4, "negative_weight": 150.0}, 0.5),
        ({"margin": 0.4, "negative_weight": 500.0}, 1.0),
        ({"margin": 0.2, "negative_weight": 150.0}, 1.0),
    )

    negative_weight: Factor | None = None
    """w of w/N over the negatives' sum; None: a plain sum."""
    margin: Annotated[float, Limits(least=-1000, most=1000)] = 0.9
    """Negatives scored below this cost nothing."""

    def row(self, scores: RowScores) -> Tensor:
        from torch.nn.functional import relu

        return relu(1 - scores.positive_R) + negatives_part(scores, self.negative_weight)

    @property
    def score_margin(self) -> float:
        return self.margin


def negatives_part(scores: RowScores, weight: float | None) -> Tensor:
    """The sum over negatives; with a weight their mean times it."""
    if weight is None:
        return scores.reduction_R
    return weight * scores.reduction_R / scores.negatives_R.clamp(min=1)
