"""The streaming reduction over negatives, in row stripes, with gradients computed in the forward.

For one stripe of R rows the walk goes over blocks of W columns: scores by one GEMM (log Q bias included), masked
pairs set to -inf, the element function in place, its row sum, and its product with the candidates by a second
GEMM while the block is in cache. After the last block each row's reduction is known, so the loss of the stripe
and the coefficient of every row are, and a third GEMM per block gives the candidates' gradient. Nothing is
recomputed, and one R x C buffer, kept between steps, is all the memory that grows with C.

Shapes: B rows, C columns, D width, R rows of a stripe, W columns of a block, N blocks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from losses.hits import MaskRule, SortedColumns, StripeHits

Element = Literal["exp", "softplus", "hinge"]
"""What is summed over a row's negatives. `exp` gives a log-sum-exp; `softplus` and `hinge` (relu) plain sums."""

RowLoss = Callable[[Tensor, Tensor, tuple[Tensor, ...], int], Tensor]
"""(reduction_R, negatives_R, row inputs each [R], first row) -> weighted loss of the stripe, a scalar."""

_LOG2_E = math.log2(math.e)
_TOP_EXPONENT = 45.0  # exp(45) times ten million columns stays far below float32's exp(88)
_LARGEST_SPREAD = 85.0  # of scores in a row for which one fixed shift keeps every sum exact and normal


class Workspace:
    """Buffers that live between steps: fresh large ones would be page-faulted in at every step."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised buffer; the same memory for the same name."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != like.dtype or flat.device != like.device:
            flat = torch.empty(size, dtype=like.dtype, device=like.device)
            self._flat[name] = flat
        return flat[:size].view(shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Workspace":
        return Workspace()

    def __getstate__(self) -> dict[str, Any]:
        return {"_flat": {}}


@dataclass(frozen=True)
class Blocking:
    """Sizes of the walk."""

    block_columns: int = 2048
    stripe_bytes: int = 64 << 20
    largest_stripe_rows: int = 512

    def columns(self, num_columns: int) -> int:
        return max(1, min(self.block_columns, num_columns))

    def stripe_rows(self, num_rows: int, num_columns: int, element_size: int) -> int:
        fitting = self.stripe_bytes // max(1, num_columns * element_size)
        return max(1, min(num_rows, self.largest_stripe_rows, max(8, fitting)))


@dataclass(frozen=True)
class Problem:
    """One reduction: scores are `query_BD @ candidate_CD.T + bias_C`, masked pairs -inf."""

    query_BD: Tensor
    candidate_CD: Tensor
    bias_C: Tensor
    rules: list[MaskRule]
    element: Element
    reduced_precision: bool = False
    """bf16 operands in the GEMMs, float32 accumulation and reduction."""


def fused_loss(
    problem: Problem,
    row_inputs: tuple[Tensor, ...],
    row_loss: RowLoss,
    blocking: Blocking,
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, reduction_B, negatives_B) of the problem; the loss has gradients, the others none.

    `row_inputs` are [B] tensors a row's loss depends on beside its reduction, gradient wanted. `reduction_B` is
    the log-sum-exp (-inf without negatives) or the plain sum; `negatives_B` counts unmasked columns.
    """
    value, reduction_B, negatives_B = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        problem.query_BD, problem.candidate_CD, problem, row_loss, blocking, workspace, *row_inputs
    )
    return value, reduction_B, negatives_B


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        query_BD: Tensor,
        candidate_CD: Tensor,
        problem: Problem,
        row_loss: RowLoss,
        blocking: Blocking,
        workspace: Workspace,
        *row_inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = any(context.needs_input_grad)
        walk = _Walk(problem, blocking, workspace, wanted)
        detached = tuple(row_input.detach() for row_input in row_inputs)
        value, reduction_B, negatives_B, input_gradients = walk.run(row_loss, detached)
        context.save_for_backward(*walk.gradients, *input_gradients)
        context.mark_non_differentiable(reduction_B, negatives_B)
        return value, reduction_B, negatives_B

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = output_gradients[0]
        query_gradient, candidate_gradient, *input_gradients = context.saved_tensors
        scaled = [gradient * scale for gradient in input_gradients]
        return query_gradient * scale, candidate_gradient * scale, None, None, None, None, *scaled


class _Walk:
    """State of one forward."""

    def __init__(self, problem: Problem, blocking: Blocking, workspace: Workspace, wanted: bool) -> None:
        self.problem = problem
        self.workspace = workspace
        self.wanted = wanted
        query_BD = problem.query_BD.detach()
        self.candidate_CD = problem.candidate_CD.detach().contiguous()
        self.num_rows, self.num_columns = query_BD.shape[0], self.candidate_CD.shape[0]
        self.block_columns = blocking.columns(self.num_columns)
        self.stripe_rows = blocking.stripe_rows(self.num_rows, self.num_columns, query_BD.element_size())
        self.sorted_columns = [SortedColumns(rule, self.block_columns) for rule in problem.rules]
        # exp2 is 3 times faster than exp on CPU: log2(e) goes into the query and the bias.
        self.unit = _LOG2_E if problem.element == "exp" else 1.0
        self.scaled_BD = query_BD * self.unit
        self.bias_C = problem.bias_C * self.unit
        self.online = problem.element == "exp"
        self.fixed_shift = 0.0
        if problem.element == "exp":
            self._choose_shift()
        self.query_gradient_BD = torch.zeros_like(query_BD)
        self.candidate_gradient_CD = torch.zeros_like(self.candidate_CD) if wanted else query_BD.new_empty(0)

    @property
    def gradients(self) -> tuple[Tensor, Tensor]:
        return self.query_gradient_BD, self.candidate_gradient_CD

    def _choose_shift(self) -> None:
        """One shift for all scores where their possible spread is small (Cauchy-Schwarz): no maximum is sought."""
        finite_bias = self.problem.bias_C[torch.isfinite(self.problem.bias_C)]
        if finite_bias.numel() == 0 or self.num_rows == 0:
            return
        bound = self.problem.query_BD.detach().norm(dim=1).max() * self.candidate_CD.norm(dim=1).max()
        low, high = finite_bias.min() - bound, finite_bias.max() + bound
        if bool(high - low < _LARGEST_SPREAD):  # device-to-host sync on CUDA
            self.online = False
            self.fixed_shift = float(high) - _TOP_EXPONENT
            self.bias_C = self.bias_C - self.fixed_shift * self.unit

    def run(
        self, row_loss: RowLoss, row_inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Loss, reduction_B, negatives_B and the gradients of the row inputs; fills `gradients`."""
        query_BD = self.problem.query_BD
        value = query_BD.new_zeros(())
        reduction_B = query_BD.new_empty(self.num_rows)
        negatives_B = query_BD.new_empty(self.num_rows)
        input_gradients = [torch.zeros_like(row_input) for row_input in row_inputs]
        valid_columns = torch.isfinite(self.problem.bias_C).sum().to(query_BD.dtype)
        for first_row in range(0, self.num_rows, self.stripe_rows):
            rows = slice(first_row, min(first_row + self.stripe_rows, self.num_rows))
            stripe = _Stripe(self, rows)
            stripe.reduce()
            negatives_B[rows] = valid_columns - stripe.hits_R
            reduction_B[rows] = stripe.reduction()
            with torch.enable_grad():
                leaves = [t[rows].clone().requires_grad_() for t in (reduction_B, *row_inputs)]
                stripe_value = row_loss(leaves[0], negatives_B[rows], tuple(leaves[1:]), first_row)
            value += stripe_value.detach()
            if not self.wanted:
                continue
            reduction_gradient, *others = torch.autograd.grad(
                stripe_value, leaves, allow_unused=True, materialize_grads=True
            )
            for gradient, other in zip(input_gradients, others, strict=True):
                gradient[rows] = other
            stripe.spread(reduction_gradient)
        return value, reduction_B, negatives_B, input_gradients


class _Stripe:
    """One stripe of rows: `reduce` walks the columns, `spread` turns row coefficients into gradients."""

    def __init__(self, walk: _Walk, rows: slice) -> None:
        self.walk = walk
        self.rows = rows
        self.query_RD = walk.scaled_BD[rows]
        self.gradient_RD = walk.query_gradient_BD[rows]
        num_rows = rows.stop - rows.start
        like = self.query_RD
        self.sum_R = like.new_zeros(num_rows)
        self.hits_R = like.new_zeros(num_rows)
        self.shift_R = like.new_full((num_rows,), -math.inf)
        self.block_shift_R: list[Tensor] = []
        self.bounds = [
            (first, min(first + walk.block_columns, walk.num_columns))
            for first in range(0, walk.num_columns, walk.block_columns)
        ]
        num_blocks = len(self.bounds) if walk.wanted else 1
        self.buffer = walk.workspace.take("stripe", (num_blocks, num_rows * walk.block_columns), like)

    def block(self, index: int) -> Tensor:
        """[R, W] view of the buffer; the last block may be narrower."""
        first, last = self.bounds[index]
        num_rows = self.query_RD.shape[0]
        flat = self.buffer[index if self.walk.wanted else 0]
        return flat[: num_rows * (last - first)].view(num_rows, last - first)

    def reduce(self) -> None:
        walk = self.walk
        hits = StripeHits(walk.sorted_columns, self.rows.start, self.rows.stop)
        for index, (first, last) in enumerate(self.bounds):
            score_RW = self.block(index)
            candidate_WD = walk.candidate_CD[first:last]
            torch.addmm(walk.bias_C[first:last], self.query_RD, candidate_WD.t(), out=score_RW)
            self._mask(score_RW, hits.places(index))
            self._apply_element(score_RW)
            if walk.wanted:
                self.gradient_RD.addmm_(score_RW, candidate_WD)

    def _mask(self, score_RW: Tensor, places: Tensor | None) -> None:
        if places is None:
            return
        width = self.walk.block_columns
        row_P = torch.div(places, width, rounding_mode="floor")
        self.hits_R += torch.bincount(row_P, minlength=self.hits_R.shape[0])
        if score_RW.shape[1] != width:  # places are laid out for full blocks
            places = places - row_P * (width - score_RW.shape[1])
        score_RW.view(-1).index_fill_(0, places, -math.inf)

    def _apply_element(self, score_RW: Tensor) -> None:
        """Adds the element function's row sums, and leaves its derivative in `score_RW`."""
        walk = self.walk
        match walk.problem.element:
            case "exp":
                if walk.online:
                    self._move_shift(score_RW)
                score_RW.exp2_()
                self.sum_R += score_RW.sum(dim=1)
            case "softplus":
                plus_RW = walk.workspace.take("softplus", tuple(score_RW.shape), score_RW)
                torch.logaddexp(score_RW, score_RW.new_zeros(()), out=plus_RW)
                self.sum_R += plus_RW.sum(dim=1)
                score_RW.sigmoid_()
            case "hinge":
                score_RW.clamp_(min=0)
                self.sum_R += score_RW.sum(dim=1)
                score_RW.sign_()

    def _move_shift(self, score_RW: Tensor) -> None:
        """Raises each row's running maximum to this block's, and rescales what was summed under the old one."""
        moved_R = torch.maximum(self.shift_R, score_RW.amax(dim=1))
        subtracted_R = _zero_if_empty(moved_R)
        rescale_R = torch.exp2(self.shift_R - subtracted_R)
        self.sum_R *= rescale_R
        if self.walk.wanted:
            self.gradient_RD.mul_(rescale_R[:, None])
        score_RW.sub_(subtracted_R[:, None])
        self.shift_R = moved_R
        self.block_shift_R.append(moved_R)

    def reduction(self) -> Tensor:
        """[R] log-sum-exp in natural units, or the plain sum."""
        walk = self.walk
        if walk.problem.element != "exp":
            return self.sum_R
        if walk.online:
            return torch.log(self.sum_R) + _zero_if_empty(self.shift_R) / walk.unit
        return torch.log(self.sum_R) + walk.fixed_shift

    def spread(self, reduction_gradient_R: Tensor) -> None:
        """Gradients of the queries and the candidates from d loss / d reduction of every row."""
        walk = self.walk
        coefficient_R = reduction_gradient_R
        if walk.problem.element == "exp":  # d LSE / d sum = 1 / sum; a row without negatives has none
            coefficient_R = torch.where(self.sum_R == 0, 0.0, reduction_gradient_R / self.sum_R)
        self.gradient_RD.mul_(coefficient_R[:, None])
        query_RD = walk.problem.query_BD.detach()[self.rows]
        weighted_RD = query_RD * coefficient_R[:, None]
        final_R = _zero_if_empty(self.shift_R)
        for index, (first, last) in enumerate(self.bounds):
            if walk.online:
                weighted_RD = query_RD * (coefficient_R * torch.exp2(self.block_shift_R[index] - final_R))[:, None]
            walk.candidate_gradient_CD[first:last].addmm_(self.block(index).t(), weighted_RD)


def _zero_if_empty(shift_R: Tensor) -> Tensor:
    return torch.where(shift_R == -math.inf, 0.0, shift_R)
