"""Softmax loss over the negatives alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Loss, RowScores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DecoupledSoftmax(Loss):
    """Softmax whose sum is over the negatives alone.

        loss = LSE - z

    Paper: the SL of Wu et al., "BSL: Understanding and Improving Softmax Loss for Recommendation",
    2024 (arXiv 2312.12882), and of IR-Benchmark; decoupled contrastive learning (Yeh et al.,
    ECCV'22). It is a bound of distributionally robust optimisation over the negatives.

    Take it: implicit feedback with false negatives in it, which its robustness tolerates.

    Data: as `ssm`.

    Relations: `ssm` as its positive's share goes to 0: a pair is pulled however well it is learned.
    `bsl` with equal temperatures and a weight of 1.
    """

    name = "sl"
    when = "implicit feedback with false negatives"

    def row(self, scores: RowScores) -> Tensor:
        return scores.reduction_R - scores.positive_R
