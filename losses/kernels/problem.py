"""What is reduced: scores, masks, the element function, and how its range is kept in float32.

Shapes: B rows, C columns, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from losses.choices import Element
from losses.formulas.formula import LOGARITHMS
from losses.kernels.hits import MaskRule

LOG2_E = math.log2(math.e)
# Of the scores of any row; with the shift in the middle, sums over ten million columns and their
# inverses stay between exp(-60) and exp(60), and float32 holds exp(-87) to exp(88).
_LARGEST_SPREAD = 80.0


@dataclass(frozen=True)
class Problem:
    """One reduction: scores `query_BD @ candidate_CD.T + bias_C`, -inf where a rule hits. Of
    `sigmoid` the bias is added to the log of each element instead: sigmoid(s) ** power * exp(b)."""

    query_BD: Tensor
    candidate_CD: Tensor
    bias_C: Tensor
    rules: list[MaskRule]
    element: Element
    copies_C: Tensor | None = None
    """How many equal columns each stands for, in the dtype of scores: in the sum of the element
    function (`exp` has their log in `bias_C`) and in the number of negatives; None: one each."""
    bf16: bool = False
    """GEMMs take bf16 operands and accumulate in float32, as rows are summed; the walk in plain
    torch rounds those of the two gradient GEMMs only and, on CPUs, each block's product."""

    power: float = 1.0
    """Of `sigmoid`."""

    @property
    def sums_logarithm(self) -> bool:
        """The reduction is the logarithm of a sum."""
        return self.element in LOGARITHMS

    def columns_seen(self) -> Tensor:
        """0-d: columns that are not hidden from all rows, each as many as it stands for."""
        seen_C = torch.isfinite(self.bias_C)
        if self.copies_C is None:
            return seen_C.sum()
        return torch.where(seen_C, self.copies_C, 0.0).sum()


@dataclass(frozen=True)
class Scaling:
    """How a problem's scores are computed and shifted.

    With `weight_C`, the bias is not added to scores but multiplies their exponentials, on the C x D
    side where
    it costs next to nothing: exp(s + b) = exp(s) * w. That needs the scores' spread to be small
        (cosines at an ordinary temperature). Without, the bias is added and, for `exp`, every row
        keeps a running maximum.
    """

    unit: float
    """Factor of all scores: log2(e) for `exp`, since exp2 is 3 times faster than exp on CPUs."""
    weight_C: Tensor | None
    shift: float
    """With weights: log-sum-exp = log(sum) + shift."""

    @property
    def bounded(self) -> bool:
        """Whether the scores' spread is small enough for weights."""
        return self.weight_C is not None

    @property
    def running_maximum(self) -> bool:
        """Whether rows need a running maximum."""
        return self.unit != 1.0 and self.weight_C is None


def choose_scaling(problem: Problem) -> Scaling:
    """Weights where Cauchy-Schwarz bounds the spread of all scores, else added bias."""
    if problem.element == "sigmoid":
        return Scaling(LOG2_E, None, 0.0)
    if problem.element != "exp":
        return Scaling(1.0, None, 0.0)
    running = Scaling(LOG2_E, None, 0.0)
    finite_bias = problem.bias_C[torch.isfinite(problem.bias_C)]
    if finite_bias.numel() == 0 or problem.query_BD.shape[0] == 0:
        return running
    query_norm = problem.query_BD.detach().norm(dim=1).max()
    bound = float(query_norm * problem.candidate_CD.detach().norm(dim=1).max())  # sync on CUDA
    low, high = float(finite_bias.min()), float(finite_bias.max())  # sync on CUDA
    if not 2 * bound + high - low < _LARGEST_SPREAD:  # also for NaN
        return running
    shift = (low + high) / 2
    return Scaling(LOG2_E, torch.exp(problem.bias_C - shift), shift)
