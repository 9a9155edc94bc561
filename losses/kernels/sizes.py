"""Sizes and buffers of the walk over negatives."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Workspace:
    """Buffers that live between steps: fresh large ones would be page-faulted in at every step."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised flat buffer; the same memory for the same name while it suffices."""
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != dtype or flat.device != device:
            flat = torch.empty(size, dtype=dtype, device=device)
            self._flat[name] = flat
        return flat[:size]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Workspace":
        return Workspace()

    def __getstate__(self) -> dict[str, Any]:
        return {"_flat": {}}


_BLOCK_SCORES = 1 << 20  # 4 MiB of float32: a block stays in the cores' caches between its passes


@dataclass(frozen=True)
class Blocking:
    """Sizes of the walk: as many rows of a stripe as its buffer holds, blocks that fit caches."""

    block_columns: int = 2048
    stripe_bytes: int = 64 << 20
    largest_stripe_rows: int = 1024

    def stripe_rows(
        self, num_rows: int, num_columns: int, element_size: int, multiple: int = 8
    ) -> int:
        """R, at most B; at least 8, below which a GEMM is no GEMM, and a multiple of `multiple`."""
        fitting = self.stripe_bytes // max(1, num_columns * element_size)
        most = max(8, min(self.largest_stripe_rows, fitting))
        return max(1, min(num_rows, most - most % multiple))

    def columns(self, num_columns: int, stripe_rows: int) -> int:
        """W, at most C."""
        fitting = max(512, _BLOCK_SCORES // stripe_rows)
        return max(1, min(self.block_columns, num_columns, fitting))


def bounds_of_blocks(num_columns: int, block_columns: int) -> list[tuple[int, int]]:
    """(first, past the last) column of every block."""
    return [
        (first, min(first + block_columns, num_columns))
        for first in range(0, num_columns, block_columns)
    ]


def row_stripes(num_rows: int, stripe_rows: int) -> list[slice]:
    """Slices of at most `stripe_rows` rows."""
    return [
        slice(first, min(first + stripe_rows, num_rows))
        for first in range(0, num_rows, stripe_rows)
    ]


def zero_if_empty(shift_R: Tensor) -> Tensor:
    """0 instead of -inf: the shift of a row that has met no unmasked column."""
    return torch.where(shift_R == -math.inf, 0.0, shift_R)
