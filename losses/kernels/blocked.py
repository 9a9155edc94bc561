"""The streaming reduction over negatives, in row stripes, with gradients computed in the forward.

For one stripe of R rows the walk goes over blocks of W columns: scores by one GEMM, masked pairs
set to -inf, the element function in place, its row sums, and its product with the candidates by a
second GEMM while the block is in cache. After the last block each row's reduction is known, so the
loss of the stripe and the coefficient of every row are, and a third GEMM per block gives the
candidates' gradient. Nothing is recomputed, and one R x C buffer, kept between steps, is all the
memory that grows with B or C beyond inputs and gradients.

Shapes: B rows, C columns, D width, R rows of a stripe, W columns of a block.
"""

import math

import torch
from torch import Tensor

from losses.kernels.hits import SortedColumns, StripeHits
from losses.kernels.problem import Problem, Scaling
from losses.kernels.sizes import Blocking, Workspace, bounds_of_blocks, row_stripes, zero_if_empty


class Walk:
    """One forward: what all stripes share, and the gradients they add to."""

    def __init__(
        self,
        problem: Problem,
        scaling: Scaling,
        blocking: Blocking,
        workspace: Workspace,
        wanted: bool,
    ) -> None:
        self.problem = problem
        self.scaling = scaling
        self.workspace = workspace
        self.wanted = wanted
        self.query_BD = problem.query_BD.detach()
        self.candidate_CD = problem.candidate_CD.detach().contiguous()
        num_rows, num_columns = self.query_BD.shape[0], self.candidate_CD.shape[0]
        self.kept_dtype = torch.bfloat16 if problem.bf16 else self.query_BD.dtype
        stripe_rows = blocking.stripe_rows(num_rows, num_columns, self.kept_dtype.itemsize)
        self.block_columns = blocking.columns(num_columns, stripe_rows)
        self.bounds = bounds_of_blocks(num_columns, self.block_columns)
        self.stripes = row_stripes(num_rows, stripe_rows)
        self.sorted_columns = [SortedColumns(rule, self.block_columns) for rule in problem.rules]
        plain = problem.element == "sigmoid"  # its unit is that of its logarithm
        self.scaled_BD = self.query_BD if plain else self.query_BD * self.scaling.unit
        self.bias_C = problem.bias_C * self.scaling.unit
        self.valid_columns = problem.columns_seen().to(self.query_BD.dtype)
        self.factor_C = scaling.weight_C if problem.sums_logarithm else problem.copies_C
        """What multiplies each column's element function; None: nothing."""
        if wanted:
            self.query_gradient_BD = torch.zeros_like(self.query_BD)
            # Block after block, each [D, W]: the GEMM into that layout is a third faster than into
            # [W, D].
            self.transposed_gradient = torch.zeros_like(self.candidate_CD).view(-1)
            factor_C = self.factor_C
            weighted = (
                self.candidate_CD if factor_C is None else self.candidate_CD * factor_C[:, None]
            )
            self.weighted_CD = weighted.to(self.kept_dtype)

    def stripe(self, rows: slice) -> "_Stripe":
        """The stripe of `rows`."""
        return _Stripe(self, rows)

    def transposed_block(self, index: int) -> Tensor:
        """[D, W] gradient of one block's candidates, transposed."""
        first, last = self.bounds[index]
        width = self.candidate_CD.shape[1]
        return self.transposed_gradient[first * width : last * width].view(width, last - first)

    def candidate_gradient(self, scale: Tensor) -> Tensor:
        """[C, D] gradient of the candidates, times a scalar."""
        gradient_CD = torch.empty_like(self.candidate_CD)
        for index, (first, last) in enumerate(self.bounds):
            # A plain copy is transposed tile by tile; a transposed product is 5 times slower.
            gradient_CD[first:last].copy_(self.transposed_block(index).t())
        factor_C = self.factor_C
        return gradient_CD.mul_(scale if factor_C is None else (factor_C * scale)[:, None])


class _Stripe:
    """One stripe of rows: `reduce` walks the columns, `spread` gives the gradients."""

    def __init__(self, walk: Walk, rows: slice) -> None:
        self.walk = walk
        self.rows = rows
        self.scaled_RD = walk.scaled_BD[rows]
        num_rows = rows.stop - rows.start
        self.sum_R = self.scaled_RD.new_zeros(num_rows)
        self.hits_R = self.scaled_RD.new_zeros(num_rows)
        self.shift_R = self.scaled_RD.new_full((num_rows,), -math.inf)
        self.block_shifts: list[Tensor] = []
        if walk.wanted:
            self.gradient_RD = walk.query_gradient_BD[rows]
        separate = walk.kept_dtype != self.scaled_RD.dtype
        block_size = num_rows * walk.block_columns
        self.kept = self._buffer(
            "kept", block_size * (len(walk.bounds) if walk.wanted else 1), walk.kept_dtype
        )
        self.scores = (
            self._buffer("scores", block_size, self.scaled_RD.dtype) if separate else self.kept
        )

    def _buffer(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        return self.walk.workspace.take(name, size, dtype, self.scaled_RD.device)

    def _kept_block(self, index: int) -> Tensor:
        """[R, W] view; the last block may be narrower. Without gradients all share one block."""
        return self._view(self.kept, index, index if self.walk.wanted else 0)

    def _view(self, flat: Tensor, index: int, place: int) -> Tensor:
        first, last = self.walk.bounds[index]
        num_rows = self.scaled_RD.shape[0]
        begin = place * num_rows * self.walk.block_columns
        return flat[begin : begin + num_rows * (last - first)].view(num_rows, last - first)

    def reduce(self) -> None:
        """Block by block: scores, element function, its sums, its product with candidates."""
        walk = self.walk
        hits = StripeHits(walk.sorted_columns, self.rows, walk.problem.copies_C)
        for index, (first, last) in enumerate(walk.bounds):
            kept_RW = self._kept_block(index)
            score_RW = kept_RW if self.scores is self.kept else self._view(self.scores, index, 0)
            candidate_DW = walk.candidate_CD[first:last].t()
            if walk.scaling.weight_C is None and walk.problem.element != "sigmoid":
                torch.addmm(walk.bias_C[first:last], self.scaled_RD, candidate_DW, out=score_RW)
            else:
                torch.mm(self.scaled_RD, candidate_DW, out=score_RW)
            places = hits.places(index, last - first)
            if places is not None:
                score_RW.view(-1).index_fill_(0, places, -math.inf)
            self._apply_element(score_RW, first, last)
            if not walk.wanted:
                continue
            if kept_RW is score_RW:
                self.gradient_RD.addmm_(kept_RW, walk.weighted_CD[first:last])
            else:
                kept_RW.copy_(score_RW)
                self.gradient_RD.add_(bf16_product(kept_RW, walk.weighted_CD[first:last]))
        self.hits_R += hits.count_R

    def _apply_element(self, score_RW: Tensor, first: int, last: int) -> None:
        """Adds the element function's row sums, and leaves its derivative in `score_RW`."""
        walk = self.walk
        match walk.problem.element:
            case "exp" if walk.scaling.weight_C is not None:
                score_RW.exp2_()
                self.sum_R.addmv_(score_RW, walk.scaling.weight_C[first:last])
            case "exp":
                self._move_shift(score_RW)
                score_RW.exp2_()
                self.sum_R += score_RW.sum(dim=1)
            case "sigmoid":
                self._apply_sigmoid(score_RW, first, last)
            case "softplus":
                plus = self._buffer("softplus", score_RW.numel(), score_RW.dtype).view_as(score_RW)
                torch.logaddexp(score_RW, score_RW.new_zeros(()), out=plus)
                self._add_sums(plus, first, last)
                score_RW.sigmoid_()
            case "hinge":
                score_RW.clamp_(min=0)
                self._add_sums(score_RW, first, last)
                score_RW.sign_()

    def _apply_sigmoid(self, score_RW: Tensor, first: int, last: int) -> None:
        """sigmoid(s) ** p * exp(b) under the row's shift; its derivative is p sigmoid(-s) of it."""
        walk = self.walk
        slope = self._buffer("slope", score_RW.numel(), score_RW.dtype).view_as(score_RW)
        torch.neg(score_RW, out=slope)
        torch.logaddexp(slope, score_RW.new_zeros(()), out=score_RW)
        slope.sigmoid_()
        score_RW.mul_(-walk.problem.power * walk.scaling.unit).add_(walk.bias_C[first:last])
        self._move_shift(score_RW)
        score_RW.exp2_()
        self.sum_R += score_RW.sum(dim=1)
        score_RW.mul_(slope).mul_(walk.problem.power)

    def _add_sums(self, value_RW: Tensor, first: int, last: int) -> None:
        factor_C = self.walk.factor_C
        if factor_C is None:
            self.sum_R += value_RW.sum(dim=1)
        else:
            self.sum_R.addmv_(value_RW, factor_C[first:last])

    def _move_shift(self, score_RW: Tensor) -> None:
        """Raises each row's running maximum, and rescales what was summed under the old one."""
        moved_R = torch.maximum(self.shift_R, score_RW.amax(dim=1))
        subtracted_R = zero_if_empty(moved_R)
        rescale_R = torch.exp2(self.shift_R - subtracted_R)
        self.sum_R *= rescale_R
        if self.walk.wanted:
            self.gradient_RD.mul_(rescale_R[:, None])
        score_RW.sub_(subtracted_R[:, None])
        self.shift_R = moved_R
        self.block_shifts.append(moved_R)

    def reduction(self) -> Tensor:
        """[R] log-sum-exp in natural units, or the plain sum."""
        scaling = self.walk.scaling
        if not self.walk.problem.sums_logarithm:
            return self.sum_R
        shift_R = (
            zero_if_empty(self.shift_R) / scaling.unit if scaling.running_maximum else scaling.shift
        )
        return torch.log(self.sum_R) + shift_R

    def spread(self, reduction_gradient_R: Tensor) -> None:
        """Gradients of the queries and the candidates from d loss / d reduction of every row."""
        walk = self.walk
        coefficient_R = reduction_gradient_R
        if walk.problem.sums_logarithm:  # d log / d sum = 1 / sum; a row without negatives has none
            coefficient_R = torch.where(self.sum_R == 0, 0.0, reduction_gradient_R / self.sum_R)
        self.gradient_RD.mul_(coefficient_R[:, None])
        final_R = zero_if_empty(self.shift_R)
        query_RD = walk.query_BD[self.rows]
        weighted_RD = (query_RD * coefficient_R[:, None]).to(walk.kept_dtype)
        for index in range(len(walk.bounds)):
            if walk.scaling.running_maximum:
                factor_R = coefficient_R * torch.exp2(self.block_shifts[index] - final_R)
                weighted_RD = (query_RD * factor_R[:, None]).to(walk.kept_dtype)
            kept_RW = self._kept_block(index)
            if self.scores is self.kept:
                walk.transposed_block(index).addmm_(weighted_RD.t(), kept_RW)
            else:
                walk.transposed_block(index).add_(bf16_product(weighted_RD.t(), kept_RW))


def bf16_product(first: Tensor, second: Tensor) -> Tensor:
    """Product of bf16 matrices, to be added in float32: in float32 on CUDA. A CPU's GEMM rounds it
    to bf16, each block's once."""
    if first.is_cuda:
        return torch.mm(first, second, out_dtype=torch.float32)
    return torch.mm(first, second)
