"""What can be chosen by name: the losses, and how they are computed. Imports no torch, so that a
config is read at once.

A new loss is a file in `losses/formulas/` and a line in `LOSSES`.
"""

from typing import TYPE_CHECKING, Literal, TypeAlias

from losses.formulas.bpr import PairwiseLogistic
from losses.formulas.bsl import BilateralSoftmax
from losses.formulas.ccl import CosineContrastive
from losses.formulas.formula import Correction, Element, Loss, parameters_of
from losses.formulas.improved_logq import ImprovedLogQ
from losses.formulas.ntr import NotToRecommend
from losses.formulas.ova import OneVsAll
from losses.formulas.psl import PairwiseSoftmax
from losses.formulas.sl import DecoupledSoftmax
from losses.formulas.sl_at_k import SoftmaxAtK
from losses.formulas.ssm import SampledSoftmax
from losses.formulas.ssm_ntr import SoftmaxNotToRecommend
from losses.formulas.talos import TopAccuracy

LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        SampledSoftmax,
        DecoupledSoftmax,
        BilateralSoftmax,
        SoftmaxAtK,
        PairwiseSoftmax,
        TopAccuracy,
        ImprovedLogQ,
        NotToRecommend,
        SoftmaxNotToRecommend,
        CosineContrastive,
        OneVsAll,
        PairwiseLogistic,
    )
}

if TYPE_CHECKING:
    LossName: TypeAlias = str
else:
    LossName = Literal[tuple(LOSSES)]
"""Names of the losses, those of the table."""

Backend = Literal["auto", "blocked", "compiled", "triton"]
"""How the walk over negatives is made; auto: the fastest there is."""

Precision = Literal["fp32", "bf16"]
"""Of the operands of GEMMs; sums are float32."""

LARGEST_HARDNESS = 100.0
TEMPERATURE_IS_A_POWER = (
    "its temperature is a power of sigmoids, not of the scores: set loss.temperature and leave "
    "learn_temperature out"
)

__all__ = [
    "LARGEST_HARDNESS",
    "LOSSES",
    "TEMPERATURE_IS_A_POWER",
    "Backend",
    "Correction",
    "Element",
    "LossName",
    "Precision",
    "none_of_that_hardness",
    "none_of_that_name",
]


def none_of_that_hardness(name: LossName) -> str:
    """Why a loss takes no hardness, and which ones do."""
    takers = ", ".join(other for other, loss in LOSSES.items() if loss.element == "exp")
    return f"loss {name} sums no exponentials, whose terms hardness weighs: set 0, or take {takers}"


def none_of_that_name(parameter: str, name: LossName) -> str:
    """Why a loss is not given a parameter, and what it has."""
    takers = ", ".join(other for other in LOSSES if parameter in parameters_of(LOSSES[other]))
    has = ", ".join(parameters_of(LOSSES[name])) or "no parameters of its own"
    belongs = f" ({parameter} belongs to {takers})" if takers else ""
    return f"loss {name} has none; it has {has}{belongs}"
