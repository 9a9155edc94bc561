"""Pairwise softmax loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Loss, RowScores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairwiseSoftmax(Loss):
    """`sl` with a surrogate of the step function that levels off, instead of exp, for each pair.

        loss = log sum_j (1 + tanh((s_j - s+) / 2)) ** (1 / t)

    of scores as they are: cosines. 1 + tanh(x / 2) is 2 sigmoid(x). The temperature is outside of
    the surrogate; at s_j = s+ the slope is that of `sl` at a temperature of 2 t.

    Paper: Yang et al., "PSL: Rethinking and Improving Softmax Loss from Pairwise Perspective for
    Recommendation", NeurIPS'24 (arXiv 2411.00163), its tanh; its scores are cosines halved. The
    atan and relu of the paper are not here.

    Take it: as `sl`, where false negatives score high: one far above the positive weighs less here.

    Data: as `ssm`, on cosines.

    Relations: `sl` with sigmoid in the place of exp, and near it at twice the temperature, since
    cosines are at most 2 apart; `talos` has the same surrogate of the distance to a threshold.
    """

    name = "psl"
    when = "as sl, with less weight on negatives far above the positive"
    element = "sigmoid"
    correction = "negatives"
    corrections = ("negatives", "none")
    subtracts_positive = True
    settings = (
        ({"temperature": 0.1}, 1.0),
        ({"temperature": 0.05}, 1.0),
        ({"temperature": 0.07}, 1.0),
        ({"temperature": 0.1}, 0.5),
        ({"temperature": 0.15}, 1.0),
        ({"temperature": 0.1}, 2.0),
    )

    def row(self, scores: RowScores) -> Tensor:
        return scores.reduction_R + math.log(2) / scores.temperature_R
