"""Launching the Triton kernels: operands, tile sizes, grids, and their place in autograd.

Shapes: B rows, C columns, D width; S parts of the walked axis.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from losses.kernels.problem import Problem
from losses.kernels.triton_kernel import (
    candidate_gradient_kernel,
    forward_kernel,
    query_gradient_kernel,
)

_ELEMENTS = {"exp": 0, "softplus": 1, "hinge": 2}
_PROGRAMS_WANTED = 264  # two for each multiprocessor of an H100


@dataclass(frozen=True)
class TileSizes:
    """Rows of the tile a program holds, of the tiles it walks over, and how it is run."""

    held: int
    walked: int
    warps: int
    stages: int


def tile_sizes(width: int, element_size: int) -> TileSizes:
    """By the bytes of one operand row; all fit 99 KiB of shared memory (compiled for sm_90)."""
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
        query_BD = problem.query_BD.detach().to(operand).contiguous()
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
            problem.bias_C.contiguous(),
            copies_C.contiguous(),
            own.values.value_L.contiguous(),
            own.key_C.contiguous(),
            listed.value_L.contiguous(),
            listed.first_B.contiguous(),
            listed.last_B.contiguous(),
        )
        self.tiles = tile_sizes(self.width, query_BD.element_size())
        self.constants = {
            "D": max(16, triton.next_power_of_2(self.width)),
            "ELEMENT": _ELEMENTS[problem.element],
            "HAS_LISTS": bool(others),
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
            "WIDEN": os.environ.get("TRITON_INTERPRET") == "1",
            "num_warps": self.tiles.warps,
            "num_stages": self.tiles.stages,
        }

    def forward(self) -> tuple[Tensor, Tensor]:
        """(reduction_B, negatives_B)."""
        tiles, parts, columns_of_part = _grid(self.num_rows, self.num_columns, self.tiles)
        reduction_SB = self._empty(parts, self.num_rows)
        negatives_SB = torch.empty_like(reduction_SB)
        forward_kernel[tiles, parts](
            *self.tensors, reduction_SB, negatives_SB,
            self.num_rows, self.num_columns, self.width, columns_of_part,
            R=self.tiles.held, W=self.tiles.walked, **self.constants,
        )  # fmt: skip
        negatives_B = negatives_SB.sum(0)
        if self.element == "exp":
            return torch.logsumexp(reduction_SB, 0), negatives_B
        return reduction_SB.sum(0), negatives_B

    def backward(self, reduction_B: Tensor, gradient_B: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients [B, D] and [C, D] in float32."""
        sizes = (self.num_rows, self.num_columns, self.width)
        tiles, parts, columns_of_part = _grid(self.num_rows, self.num_columns, self.tiles)
        query_SBD = self._empty(parts, self.num_rows, self.width)
        query_gradient_kernel[tiles, parts](
            *self.tensors, reduction_B, gradient_B, query_SBD, *sizes, columns_of_part,
            R=self.tiles.held, W=self.tiles.walked, **self.constants,
        )  # fmt: skip
        tiles, parts, rows_of_part = _grid(self.num_columns, self.num_rows, self.tiles)
        candidate_SCD = self._empty(parts, self.num_columns, self.width)
        candidate_gradient_kernel[tiles, parts](
            *self.tensors, reduction_B, gradient_B, candidate_SCD, *sizes, rows_of_part,
            R=self.tiles.walked, W=self.tiles.held, **self.constants,
        )  # fmt: skip
        return query_SBD.sum(0), candidate_SCD.sum(0)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.tensors[0].device)


def _grid(tiled: int, walked: int, tiles: TileSizes) -> tuple[int, int, int]:
    """(tiles of one axis, parts of the other, length of a part): enough programs for a device."""
    held_tiles = -(-tiled // tiles.held)
    walked_tiles = max(1, -(-walked // tiles.walked))
    parts = max(1, min(walked_tiles, _PROGRAMS_WANTED // max(1, held_tiles)))
    tiles_of_part = -(-walked_tiles // parts)
    return held_tiles, -(-walked_tiles // tiles_of_part), tiles_of_part * tiles.walked
