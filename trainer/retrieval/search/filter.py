"""How the GEMM that filters runs, and how far its scores may be off."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch

from trainer.base.mistake import Mistake

Precision = Literal["float32", "bfloat16"]

GROUP = 64
"""Items under one maximum."""


@dataclass(frozen=True)
class Filter:
    """How the GEMM that filters runs. None of it changes the result."""

    precision: Precision = "float32"
    chunk_items: int = 2048
    """Items scored at once, a multiple of GROUP. Scores take chunk_items * queries * 4 bytes."""

    def __post_init__(self) -> None:
        if self.chunk_items <= 0 or self.chunk_items % GROUP:
            raise Mistake(
                f"chunk_items is {self.chunk_items}; it must be a positive multiple of {GROUP}."
            )

    @staticmethod
    def best_for(device: torch.device) -> Filter:
        """The fastest on this device; on a CPU, where bfloat16 may be emulated, by trying both."""
        if device.type == "cuda":
            return Filter("bfloat16", chunk_items=1 << 16)
        return Filter(_faster_precision(), chunk_items=4096)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "float32" else torch.bfloat16


@cache
def _faster_precision() -> Precision:
    """Of this machine's GEMMs; tried once, not in every evaluation while training."""
    seconds = {kind: _gemm_seconds(Filter(kind)) for kind in get_args(Precision)}
    return "bfloat16" if seconds["bfloat16"] < seconds["float32"] else "float32"


def _gemm_seconds(how: Filter) -> float:
    """The shortest of a few runs of a small filter step."""
    operand = torch.ones((1024, 64), dtype=how.dtype)
    score = torch.empty((1024, 1024), dtype=how.dtype)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(operand, operand.T, out=score)
        score.unflatten(0, (-1, GROUP)).amax(1)
        times.append(time.perf_counter() - started)
    return min(times)


def accumulated_rounding(width: int) -> float:
    """Relative error of the GEMM's sum of `width` products, and of the threshold's arithmetic.

    `torch.set_float32_matmul_precision` lets float32 GEMMs run in TF32 or bfloat16.
    """
    unit = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}[
        torch.get_float32_matmul_precision()
    ]
    return 2 * (width + 8) * 2.0**-24 + 3 * unit
