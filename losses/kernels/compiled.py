"""The walk in row stripes by a compiled kernel: `exp` in float32 on a CPU.

The same stripes and the same result as `losses.kernels.blocked.Walk`, but exponentials are taken
while scores are in registers, log Q enters there too, and the GEMMs read what the caches still
hold: it is faster than the three bare GEMMs of a library. With bf16 all three products take bf16
operands and are summed in float32, as are the rows.

Shapes: B rows, C columns, D width, R rows of a stripe; padded to P, Q and E: B to the kernel's
rows, C and D to its panels.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.kernels.hits import MaskRule, SortedColumns
from losses.kernels.native import StripeKernel
from losses.kernels.problem import Problem, Scaling
from losses.kernels.sizes import Blocking, Workspace, row_stripes


class CompiledWalk:
    """One forward: what all stripes share, and the gradients they add to."""

    def __init__(
        self,
        problem: Problem,
        scaling: Scaling,
        kernel: StripeKernel,
        blocking: Blocking,
        workspace: Workspace,
    ) -> None:
        self.scaling, self.kernel, self.workspace = scaling, kernel, workspace
        self.wanted = True
        self.bf16 = problem.bf16 and kernel.has_bf16
        self.query_BD = problem.query_BD.detach()
        self.candidate_CD = problem.candidate_CD.detach()
        panel = kernel.panel_columns
        self.num_rows, self.num_columns = self.query_BD.shape[0], self.candidate_CD.shape[0]
        self.width = padded_size(self.query_BD.shape[1], panel)
        self.padded_columns = padded_size(self.num_columns, panel)
        padded_rows = padded_size(self.num_rows, kernel.rows_multiple)
        self.scaled_PE = pad(self.query_BD * scaling.unit, padded_rows, self.width)
        candidate_QE = pad(self.candidate_CD, self.padded_columns, self.width)
        self._lay_out(candidate_QE)
        bias_C = (problem.bias_C - scaling.shift) * scaling.unit
        self.bias_Q = F.pad(bias_C, (0, self.padded_columns - self.num_columns), value=-torch.inf)
        self.rules = [EntryRanges(rule, padded_rows) for rule in problem.rules]
        self.valid_columns = problem.columns_seen().to(self.query_BD.dtype)
        copies_C = problem.copies_C
        self.copies_C = torch.ones_like(bias_C) if copies_C is None else copies_C.contiguous()
        self.sum_P = self.scaled_PE.new_zeros(padded_rows)
        self.hits_P = torch.zeros(padded_rows, dtype=torch.float64)
        self.gradient_PE = torch.zeros_like(self.scaled_PE)
        self.gradient_QE = torch.zeros_like(candidate_QE)
        stripe_rows = blocking.stripe_rows(
            self.num_rows, self.padded_columns, 2 if self.bf16 else 4, kernel.rows_multiple
        )
        self.stripes = row_stripes(self.num_rows, stripe_rows)
        self.threads = torch.get_num_threads()

    @property
    def query_gradient_BD(self) -> Tensor:
        """[B, D] gradient of the queries."""
        return self.gradient_PE[: self.num_rows, : self.query_BD.shape[1]]

    def candidate_gradient(self, scale: Tensor) -> Tensor:
        """[C, D] gradient of the candidates, times a scalar."""
        return self.gradient_QE[: self.num_columns, : self.candidate_CD.shape[1]] * scale

    def stripe(self, rows: slice) -> "_CompiledStripe":
        """The stripe of `rows`."""
        return _CompiledStripe(self, rows)

    def take(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """A kept buffer."""
        return self.workspace.take(name, size, dtype, self.query_BD.device)

    def _lay_out(self, candidate_QE: Tensor) -> None:
        """Candidates as the kernel reads them: panels for scores, rows for query gradients."""
        panel, width = self.kernel.panel_columns, self.width
        by_panel = candidate_QE.view(-1, panel, width)
        if not self.bf16:
            packed = self.take("packed", candidate_QE.numel(), torch.float32)
            packed.view(-1, width, panel).copy_(by_panel.transpose(1, 2))
            self.packed, self.candidate = packed, candidate_QE
            return
        packed = self.take("packed", candidate_QE.numel(), torch.bfloat16)
        rounded = by_panel.to(torch.bfloat16).view(torch.int32)
        packed.view(torch.int32).view(-1, width // 2, panel).copy_(rounded.transpose(1, 2))
        self.packed = packed
        self.candidate = self.take("candidate", candidate_QE.numel(), torch.bfloat16)
        pairs_of_rows(candidate_QE, self.candidate)


class _CompiledStripe:
    """One stripe of rows: `reduce` walks the columns, `spread` gives the gradients."""

    def __init__(self, walk: CompiledWalk, rows: slice) -> None:
        self.walk = walk
        count = rows.stop - rows.start
        self.padded_rows = padded_size(count, walk.kernel.rows_multiple)
        self.rows = slice(rows.start, rows.start + self.padded_rows)
        self.sum_R = walk.sum_P[rows]
        self.hits_R = walk.hits_P[rows]
        dtype = torch.bfloat16 if walk.bf16 else torch.float32
        self.kept = walk.take("kept", self.padded_rows * walk.padded_columns, dtype)

    def reduce(self) -> None:
        """Sums, hits and, still without its coefficients, the queries' gradient."""
        walk = self.walk
        query_RE = walk.scaled_PE[self.rows]
        before = [*self._sizes(), address(query_RE), address(walk.packed), address(walk.candidate)]
        rules = (_Rule * len(walk.rules))(*(rule.seen_from(self.rows) for rule in walk.rules))
        columns = [address(walk.bias_Q), address(walk.copies_C)]
        masks = [*columns, ctypes.c_int64(len(walk.rules)), rules]
        after = [
            address(tensor[self.rows]) for tensor in (walk.sum_P, walk.hits_P, walk.gradient_PE)
        ]
        if not walk.bf16:
            walk.kernel.library.reduce(*before, *masks, address(self.kept), *after)
            return
        rounded_RE = query_RE.to(torch.bfloat16)
        before[4] = address(rounded_RE)
        exps = walk.take("exps", self.padded_rows * walk.kernel.block_columns, torch.float32)
        walk.kernel.library.reduce_bf16(*before, *masks, address(self.kept), address(exps), *after)

    def reduction(self) -> Tensor:
        """[R] log-sum-exp in natural units."""
        return torch.log(self.sum_R) + self.walk.scaling.shift

    def spread(self, reduction_gradient_R: Tensor) -> None:
        """Gradients of the queries and the candidates from d loss / d reduction of every row."""
        walk = self.walk
        # d LSE / d sum = 1 / sum; a row without negatives has none.
        coefficient_R = torch.where(self.sum_R == 0, 0.0, reduction_gradient_R / self.sum_R)
        coefficient_R = F.pad(coefficient_R, (0, self.padded_rows - coefficient_R.shape[0]))
        walk.gradient_PE[self.rows].mul_(coefficient_R[:, None])
        weighted_RE = walk.scaled_PE[self.rows] * (coefficient_R / walk.scaling.unit)[:, None]
        name = "spread"
        if walk.bf16:
            name = "spread_bf16"
            rounded = weighted_RE.new_empty(weighted_RE.numel(), dtype=torch.bfloat16)
            weighted_RE = pairs_of_rows(weighted_RE, rounded)
        walk.kernel.library[name](
            *self._sizes(), address(weighted_RE), address(self.kept), address(walk.gradient_QE)
        )

    def _sizes(self) -> list[object]:
        walk = self.walk
        sizes = (self.padded_rows, walk.padded_columns, walk.width)
        return [ctypes.c_int(walk.threads), *map(ctypes.c_int64, sizes)]


class _Rule(ctypes.Structure):
    """`Rule` of the kernel."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("column", "next", "end", "first_entry")]


class EntryRanges:
    """A mask rule as the kernel reads it: each entry a range of the columns in key order."""

    def __init__(self, rule: MaskRule, padded_rows: int) -> None:
        columns = SortedColumns(rule, max(1, rule.key_C.shape[0]))
        entries = rule.values.entries
        first_1V, count_1V = columns.ranges(entries.value_V)
        self.column_C = columns.column_NW.view(-1)
        self.next_V, self.end_V = first_1V.view(-1), (first_1V + count_1V).view(-1)
        first = entries.first_of_row
        added = padded_rows + 1 - first.shape[0]
        self.first_entry_P = torch.cat([first, first[-1:].expand(added)])

    def seen_from(self, rows: slice) -> _Rule:
        """For a stripe; entries are numbered over all rows."""
        return _Rule(
            self.column_C.data_ptr(),
            self.next_V.data_ptr(),
            self.end_V.data_ptr(),
            self.first_entry_P[rows].data_ptr(),
        )


def padded_size(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def pad(matrix_XD: Tensor, rows: int, width: int) -> Tensor:
    """[rows, width] with zeros around; the same memory where there is nothing to add."""
    added = (rows - matrix_XD.shape[0], width - matrix_XD.shape[1])
    if added == (0, 0):
        return matrix_XD.contiguous()
    return F.pad(matrix_XD, (0, added[1], 0, added[0]))


def pairs_of_rows(matrix_XE: Tensor, out: Tensor) -> Tensor:
    """bf16 [X / 2, E, 2]: two neighbouring rows side by side, in the flat `out`."""
    rows, width = matrix_XE.shape
    out.view(rows // 2, width, 2).copy_(matrix_XE.view(rows // 2, 2, width).transpose(1, 2))
    return out


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Of the first element. The tensor must live as long as the call."""
    return ctypes.c_void_p(tensor.data_ptr())
