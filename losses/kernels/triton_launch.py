"""Launching the Triton kernels: operands, tile sizes, grids, and their place in autograd.

Shapes: B rows, C columns, D width; S parts of the walked axis.
"""

import math
import os
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from losses.kernels.problem import LOG2_E, Problem
from losses.kernels.triton_kernel import (
    candidate_gradient_kernel,
    forward_kernel,
    query_gradient_kernel,
)

_ELEMENTS = {"exp": 0, "softplus": 1, "hinge": 2}
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
    """Of each of the three kernels."""

    forward: TileSizes
    query: TileSizes
    candidate: TileSizes


_FASTEST: dict[tuple[int, int], tuple[int, Tiles]] = {
    (2, 64): (
        68_096,
        Tiles(TileSizes(128, 128, 4, 2), TileSizes(128, 128, 4, 3), TileSizes(64, 64, 4, 3)),
    ),
    (2, 128): (
        99_328,
        Tiles(TileSizes(128, 128, 4, 2), TileSizes(128, 64, 4, 2), TileSizes(64, 64, 4, 3)),
    ),
    (2, 256): (
        107_520,
        Tiles(TileSizes(128, 32, 8, 2), TileSizes(64, 64, 4, 2), TileSizes(64, 64, 4, 2)),
    ),
    (4, 64): (
        115_712,
        Tiles(TileSizes(128, 32, 8, 1), TileSizes(128, 64, 8, 2), TileSizes(64, 64, 4, 2)),
    ),
    (4, 128): (
        196_608,
        Tiles(TileSizes(64, 32, 4, 2), TileSizes(128, 32, 8, 1), TileSizes(128, 32, 8, 1)),
    ),
}
"""By bytes of an operand's element and width, the fastest of 56 choices on an H200, and the bytes
of shared memory they take, compiled for sm_90 (docs/benchmarks/gpu.md)."""


def tile_sizes(width: int, element_size: int, shared_bytes: int) -> Tiles:
    """The fastest measured, where the device's shared memory holds them; else such as need 99 KiB
    at most, by the bytes of one operand row."""
    columns = max(64, triton.next_power_of_2(width))
    needed, fastest = _FASTEST.get((element_size, columns), (math.inf, None))
    if fastest is not None and needed <= shared_bytes:
        return fastest
    return Tiles(*[_small_tiles(width, element_size)] * 3)


def _small_tiles(width: int, element_size: int) -> TileSizes:
    row_bytes = max(16, triton.next_power_of_2(width)) * element_size
    if element_size == 2 and row_bytes <= 256:
        return TileSizes(held=128, walked=64, warps=8, stages=3)
    if row_bytes <= 256:
        return TileSizes(held=64, walked=32, warps=4, stages=2)
    if row_bytes <= 512:
        return TileSizes(held=64 if element_size == 2 else 32, walked=32, warps=4, stages=2)
    return TileSizes(held=16, walked=16, warps=4, stages=1)


def kernel_reduction(problem: Problem) -> tuple[Tensor, Tensor]:
    """(reduction_B with gradient, negatives_B) of a problem with at most one list of ids a row."""
    reduction_B, negatives_B = _KernelReduction.apply(  # type: ignore[no-untyped-call]
        problem.query_BD, problem.candidate_CD, problem
    )
    return reduction_B, negatives_B


class _KernelReduction(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, query_BD: Tensor, candidate_CD: Tensor, problem: Problem
    ) -> tuple[Tensor, Tensor]:
        launch = _Launch(problem)
        reduction_B, negatives_B = launch.forward()
        context.launch = launch
        context.save_for_backward(reduction_B)
        context.mark_non_differentiable(negatives_B)
        return reduction_B, negatives_B

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (reduction_B,) = context.saved_tensors
        query_gradient, candidate_gradient = context.launch.backward(
            reduction_B, gradients[0].contiguous()
        )
        return query_gradient, candidate_gradient, None


class _Launch:
    """Operands, tile sizes and grids of one problem's kernels."""

    def __init__(self, problem: Problem) -> None:
        operand = torch.bfloat16 if problem.bf16 else problem.query_BD.dtype
        unit = LOG2_E if problem.element == "exp" else 1.0
        query_BD = (problem.query_BD.detach() * unit).to(operand).contiguous()
        candidate_CD = problem.candidate_CD.detach().to(operand).contiguous()
        self.num_rows, self.width = query_BD.shape
        self.num_columns = candidate_CD.shape[0]
        self.element = problem.element
        copies_C = problem.copies_C
        copies_C = torch.ones_like(problem.bias_C) if copies_C is None else copies_C
        own, *others = problem.rules
        assert own.values.one_each and len(others) <= 1
        listed = others[0].values if others else own.values
        self.tensors = (
            query_BD,
            candidate_CD,
            (problem.bias_C * unit).contiguous(),
            copies_C.contiguous(),
            own.values.value_L.contiguous(),
            own.key_C.contiguous(),
            listed.value_L.contiguous(),
            listed.first_B.contiguous(),
            listed.last_B.contiguous(),
        )
        self.tiles = tile_sizes(self.width, query_BD.element_size(), _shared_bytes(query_BD.device))
        self.constants = {
            "D": max(16, triton.next_power_of_2(self.width)),
            "ELEMENT": _ELEMENTS[problem.element],
            "HAS_LISTS": bool(others),
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
            "WIDEN": os.environ.get("TRITON_INTERPRET") == "1",
        }

    def forward(self) -> tuple[Tensor, Tensor]:
        """(reduction_B, negatives_B)."""
        sizes = self.tiles.forward
        tiles, parts, columns_of_part = _grid(self.num_rows, self.num_columns, sizes)
        reduction_SB = self._empty(parts, self.num_rows)
        negatives_SB = torch.empty_like(reduction_SB)
        forward_kernel[tiles, parts](
            *self.tensors, reduction_SB, negatives_SB,
            self.num_rows, self.num_columns, self.width, columns_of_part,
            R=sizes.held, W=sizes.walked, **sizes.options, **self.constants,
        )  # fmt: skip
        negatives_B = negatives_SB.sum(0)
        if self.element == "exp":
            return torch.logsumexp(reduction_SB, 0), negatives_B
        return reduction_SB.sum(0), negatives_B

    def backward(self, reduction_B: Tensor, gradient_B: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients [B, D] and [C, D] in float32."""
        shape = (self.num_rows, self.num_columns, self.width)
        sizes = self.tiles.query
        tiles, parts, columns_of_part = _grid(self.num_rows, self.num_columns, sizes)
        query_SBD = self._empty(parts, self.num_rows, self.width)
        query_gradient_kernel[tiles, parts](
            *self.tensors, reduction_B, gradient_B, query_SBD, *shape, columns_of_part,
            R=sizes.held, W=sizes.walked, **sizes.options, **self.constants,
        )  # fmt: skip
        sizes = self.tiles.candidate
        tiles, parts, rows_of_part = _grid(self.num_columns, self.num_rows, sizes)
        candidate_SCD = self._empty(parts, self.num_columns, self.width)
        candidate_gradient_kernel[tiles, parts](
            *self.tensors, reduction_B, gradient_B, candidate_SCD, *shape, rows_of_part,
            R=sizes.walked, W=sizes.held, **sizes.options, **self.constants,
        )  # fmt: skip
        return query_SBD.sum(0), candidate_SCD.sum(0)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.tensors[0].device)


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
