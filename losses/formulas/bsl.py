"""Bilateral softmax loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Factor, Loss, RowScores, Temperature

if TYPE_CHECKING:
    from torch import Tensor

USUAL_WEIGHT = 1.2
"""Where nothing tells the sides apart: at one temperature and a factor of 1 it would be `sl`."""


@dataclass(frozen=True)
class BilateralSoftmax(Loss):
    """`sl` with a temperature or a weight for each side.

        loss = weight * log sum_j exp(s_j / t2) - s+ / t1

    Paper: Wu et al., "BSL: Understanding and Improving Softmax Loss for Recommendation", 2024
    (arXiv 2312.12882). The paper's form has a weight of t2 / t1. The authors' code has one
    temperature and an exponent, which is `negative_weight` here.

    Take it: implicit feedback whose positives are noisy (clicks, plays by accident), where its
    weight can be tuned (1.1 to 1.6): on Gowalla it is ahead of all others then, on MovieLens-100k
    as it comes a little behind `sl` (docs/quality.md).

    Data: as `ssm`. With `several_positives`, some positives of a user in a batch.

    Relations: `sl` at equal temperatures and a weight of 1.
    """

    name = "bsl"
    when = "sl with a weight to tune; noisy positives"
    settings = (
        ({"temperature": 0.1, "negative_weight": 1.2}, 1.0),
        ({"temperature": 0.15, "negative_weight": 1.2}, 1.0),
        ({"temperature": 0.1, "negative_weight": 0.85}, 1.0),
        ({"temperature": 0.07, "negative_weight": 1.2}, 1.0),
        ({"temperature": 0.2, "negative_weight": 1.2}, 1.0),
        ({"temperature": 0.1, "negative_weight": 1.2}, 2.0),
    )

    negative_temperature: Temperature | None = None
    """The negatives' temperature; None: `temperature`."""
    negative_weight: Factor | None = None
    """Factor of the log-sum-exp, with one temperature the authors' exponent. None: 1.2, or the
    ratio of temperatures, the paper's form, where negative_temperature is given."""
    several_positives: bool = False
    """A user's positives in the batch count together; needs mask_same_user."""

    def row(self, scores: RowScores) -> Tensor:
        if self.negative_weight is not None:
            return self.negative_weight * scores.reduction_R - scores.positive_R
        if self.negative_temperature is not None:
            return scores.temperature_ratio_R * scores.reduction_R - scores.positive_R
        return USUAL_WEIGHT * scores.reduction_R - scores.positive_R

    def temperatures(self, temperature: float) -> tuple[float, ...]:
        if self.negative_temperature is None:
            return (temperature,)
        return temperature, self.negative_temperature

    @property
    def averages_positives(self) -> bool:
        return self.several_positives
