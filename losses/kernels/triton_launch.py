"""Launching the Triton kernels: operands, tile sizes, grids, and their place in autograd.

Shapes: B rows, C columns, D width; S parts of the walked axis.
"""

import math
import os
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from losses.kernels.problem import LOG2_E, Problem
from losses.kernels.sizes import zero_if_empty
from losses.kernels.triton_kernel import candidate_gradient_kernel, forward_kernel
from losses.kernels.triton_operands import candidate_kernel, query_kernel, row_kernel

_ELEMENTS = {"exp": 0, "softplus": 1, "hinge": 2}
_LARGEST_TILE = 256
LARGE = 1 << 24
"""Scores of a problem that is walked with a fixed shift first, and again where that fails: below it
one launch more costs more than the largest score of each row."""
_PROGRAMS_WANTED = 264  # two for each multiprocessor of an H100


class TileSizes(NamedTuple):
    """Rows of the tile a program holds, of the tiles it walks over, and how it is run."""

    held: int
    walked: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


class Tiles(NamedTuple):
    """Of both kernels."""

    forward: TileSizes
    candidate: TileSizes


FASTEST: dict[tuple[int, int], tuple[int, Tiles]] = {
    (1, 64): (
        71_680,
        Tiles(TileSizes(64, 128, 4, 3), TileSizes(128, 64, 4, 2)),
    ),
    (1, 128): (
        92_672,
        Tiles(TileSizes(64, 64, 4, 3), TileSizes(64, 128, 4, 2)),
    ),
    (1, 256): (
        104_704,
        Tiles(TileSizes(64, 64, 4, 2), TileSizes(64, 64, 4, 2)),
    ),
    (3, 64): (
        106_752,
        Tiles(TileSizes(128, 64, 8, 2), TileSizes(128, 64, 8, 2)),
    ),
    (3, 128): (
        153_600,
        Tiles(TileSizes(128, 64, 8, 1), TileSizes(64, 32, 4, 2)),
    ),
    (3, 256): (
        225_792,
        Tiles(TileSizes(128, 16, 8, 1), TileSizes(128, 16, 8, 1)),
    ),
}
"""By pieces and width, the fastest of some 130 choices on an H200, and the bytes of shared memory
they take, compiled for sm_90 (docs/benchmarks/gpu.md)."""


def tile_sizes(columns: int, pieces: int, shared_bytes: int) -> Tiles:
    """The fastest measured, where the device's shared memory holds them; else such as need 99 KiB
    at most."""
    needed, fastest = FASTEST.get((pieces, max(64, columns)), (math.inf, None))
    if fastest is not None and needed <= shared_bytes:
        return fastest
    return Tiles(*[_small_tiles(columns * pieces * 2)] * 2)


def _small_tiles(row_bytes: int) -> TileSizes:
    """By the bytes of an operand's row in all its pieces."""
    if row_bytes <= 256:
        return TileSizes(held=64, walked=64, warps=4, stages=2)
    if row_bytes <= 512:
        return TileSizes(held=64, walked=32, warps=4, stages=2)
    if row_bytes <= 768:
        return TileSizes(held=64, walked=32, warps=4, stages=1)
    return TileSizes(held=16, walked=16, warps=4, stages=1)


def kernel_reduction(problem: Problem) -> tuple[Tensor, Tensor]:
    """(reduction_B with gradient, negatives_B) of a problem with at most one list of ids a row."""
    wanted = torch.is_grad_enabled() and problem.query_BD.requires_grad
    reduction_B, negatives_B = _KernelReduction.apply(  # type: ignore[no-untyped-call]
        problem.query_BD, problem.candidate_CD, problem, wanted
    )
    return reduction_B, negatives_B


class _KernelReduction(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, query_BD: Tensor, candidate_CD: Tensor, problem: Problem, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        launch = _Launch(problem)
        reduction_B, negatives_B, slope_BD = launch.forward(wanted)
        context.launch = launch
        context.save_for_backward(reduction_B, slope_BD)
        context.mark_non_differentiable(negatives_B)
        return reduction_B, negatives_B

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        reduction_B, slope_BD = context.saved_tensors
        gradient_B = gradients[0].contiguous()
        needs_query, needs_candidate, *_ = context.needs_input_grad
        return (
            slope_BD * gradient_B[:, None] if needs_query else None,
            context.launch.backward(reduction_B, gradient_B) if needs_candidate else None,
            None,
            None,
        )


class _Launch:
    """Operands, tile sizes and grids of one problem's kernels."""

    def __init__(self, problem: Problem) -> None:
        self.softmax = problem.element == "exp"
        unit = LOG2_E if self.softmax else 1.0
        pieces = 1 if problem.bf16 else 3
        self.num_rows, self.width = problem.query_BD.shape
        self.columns_given = problem.candidate_CD.shape[0]
        self.large = self.softmax and self.num_rows * self.columns_given >= LARGE
        columns = max(16, triton.next_power_of_2(self.width))
        own, *others = problem.rules
        assert own.values.one_each and len(others) <= 1
        self.lists = bool(others)
        ordered_C, order_C = torch.sort(own.key_C)
        ordered_B, order_B = torch.sort(own.values.value_L)
        self.own = (order_B, *_places(ordered_C, ordered_B))
        self.columns = (order_C, *_places(ordered_B, ordered_C))
        self.listed: tuple[Tensor, ...] = (order_B,) * 4
        if others:
            values = others[0].values
            ends = (values.first_B.contiguous(), values.last_B.contiguous())
            self.listed = (*_places(ordered_C, values.value_L), *ends)
        query, self.row_stride = _cut_queries(problem.query_BD, order_B, unit, pieces, columns)
        self.operands = (query, *_cut_candidates(problem, order_C, unit, pieces, columns))
        copies = self.operands[-1]
        self.num_columns = copies.shape[0]
        before = F.pad(copies.cumsum(0), (1, 0))
        _, first_B, last_B = self.own
        hits_B = before[last_B] - before[first_B]
        self.hits_B = torch.empty_like(hits_B).index_copy_(0, order_B, hits_B)
        self.columns_seen = before[-1]
        self.tiles = tile_sizes(columns, pieces, _shared_bytes(problem.query_BD.device))
        self.constants = {
            "D": columns,
            "PIECES": pieces,
            "ELEMENT": _ELEMENTS[problem.element],
            "LISTS": self.lists,
            "WIDEN": os.environ.get("TRITON_INTERPRET") == "1",
        }

    def forward(self, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """(reduction_B, negatives_B, the reduction's gradient to the queries [B, D] if wanted)."""
        sizes = self.tiles.forward
        tiles, parts, columns_of_part = _grid(self.num_rows, self.num_columns, sizes)
        reduction_SB, hits_SB = self._empty(2, parts, self.num_rows)
        slope_SBD = self._empty(parts, self.num_rows, self.width) if wanted else reduction_SB
        lost = torch.empty(tiles * parts, dtype=torch.int32, device=reduction_SB.device)
        # With a fixed shift first, and again with a moving one where that failed.
        again_of_moving = {False: False, True: True} if self.large else {self.softmax: False}
        for moving, again in again_of_moving.items():
            forward_kernel[tiles, parts](
                *self.operands, *self.own, *self.listed, reduction_SB, hits_SB, slope_SBD, lost,
                self.num_rows, self.row_stride, self.num_columns, self.width, columns_of_part,
                R=sizes.held, W=sizes.walked, GRADIENT=wanted, MOVING=moving, AGAIN=again,
                **sizes.options, **self.constants,
            )  # fmt: skip
        hits_B = hits_SB.sum(0) if self.lists else self.hits_B
        negatives_B = self.columns_seen - hits_B
        if not wanted:
            return self._together(reduction_SB), negatives_B, None
        if parts == 1:
            return reduction_SB[0], negatives_B, slope_SBD[0]
        reduction_B = self._together(reduction_SB)
        if self.softmax:
            slope_SBD *= torch.exp(reduction_SB - zero_if_empty(reduction_B))[..., None]
        return reduction_B, negatives_B, slope_SBD.sum(0)

    def _together(self, reduction_SB: Tensor) -> Tensor:
        return reduction_SB.logsumexp(0) if self.softmax else reduction_SB.sum(0)

    def backward(self, reduction_B: Tensor, gradient_B: Tensor) -> Tensor:
        """Gradient [C, D] of the candidates, float32."""
        sizes = self.tiles.candidate
        tiles, parts, rows_of_part = _grid(self.columns_given, self.num_rows, sizes)
        candidate_SCD = self._empty(parts, self.columns_given, self.width)
        least = gradient_B.min() if self.large else gradient_B  # read of large ones alone
        factor = self._empty(self.row_stride)
        further = factor.new_empty((self.row_stride, 16), dtype=torch.bfloat16)
        row_kernel[(self.row_stride // _LARGEST_TILE,)](
            reduction_B, gradient_B, least, self.own[0], further, factor, self.num_rows,
            R=_LARGEST_TILE, ELEMENT=self.constants["ELEMENT"], LEAN=self.large,
        )  # fmt: skip
        for lean in (True, False) if self.large else (False,):
            candidate_gradient_kernel[tiles, parts](
                *self.operands, *self.columns, self.own[0], *self.listed, further, factor, least,
                candidate_SCD, self.num_rows, self.row_stride, self.num_columns,
                self.columns_given, self.width, rows_of_part, LEAN=lean, EITHER=self.large,
                R=sizes.walked, W=sizes.held, **sizes.options, **self.constants,
            )  # fmt: skip
        return candidate_SCD[0] if parts == 1 else candidate_SCD.sum(0)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.operands[0].device)


def _cut_queries(
    query_BD: Tensor, order_B: Tensor, unit: float, pieces: int, columns: int
) -> tuple[Tensor, int]:
    """(bfloat16 [P, rows, columns]: the queries times `unit` in pieces whose sum it is, rows)."""
    num_rows, width = query_BD.shape
    rows = _padded(num_rows)
    out = query_BD.new_empty((pieces, rows, columns), dtype=torch.bfloat16)
    held = _rows_at_once(columns)
    query_kernel[(rows // held,)](
        query_BD.detach().contiguous(), order_B, out, num_rows, rows, width, unit,
        R=held, D=columns, PIECES=pieces,
    )  # fmt: skip
    return out, rows


def _cut_candidates(
    problem: Problem, order_C: Tensor, unit: float, pieces: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(pieces, further columns, copies) of the candidates in order."""
    candidate_CD = problem.candidate_CD.detach().contiguous()
    num_given, width = candidate_CD.shape
    rows = _padded(num_given)
    out = candidate_CD.new_empty((pieces, rows, columns), dtype=torch.bfloat16)
    further = candidate_CD.new_empty((rows, 16), dtype=torch.bfloat16)
    copies = candidate_CD.new_empty(rows)
    given = problem.bias_C if problem.copies_C is None else problem.copies_C
    held = _rows_at_once(columns)
    candidate_kernel[(rows // held,)](
        candidate_CD, order_C, problem.bias_C.contiguous(), given.contiguous(), out, further,
        copies, num_given, rows, width, unit,
        R=held, D=columns, PIECES=pieces, COPIES=problem.copies_C is not None,
    )  # fmt: skip
    return out, further, copies


def _places(ordered: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(first, past the last) place of each value in order, int32."""
    last = torch.searchsorted(ordered, values, out_int32=True, right=True)
    return torch.searchsorted(ordered, values, out_int32=True), last


def _padded(size: int) -> int:
    """To whole tiles, whatever their size, so that no load needs a mask."""
    return max(1, -(-size // _LARGEST_TILE)) * _LARGEST_TILE


def _rows_at_once(columns: int) -> int:
    return min(_LARGEST_TILE, 8192 // columns)


@cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may have; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def _grid(tiled: int, walked: int, tiles: TileSizes) -> tuple[int, int, int]:
    """(tiles of one axis, parts of the other, length of a part): enough programs for a device."""
    held_tiles = -(-tiled // tiles.held)
    walked_tiles = max(1, -(-walked // tiles.walked))
    parts = max(1, min(walked_tiles, _PROGRAMS_WANTED // max(1, held_tiles)))
    tiles_of_part = -(-walked_tiles // parts)
    return held_tiles, -(-walked_tiles // tiles_of_part), tiles_of_part * tiles.walked
