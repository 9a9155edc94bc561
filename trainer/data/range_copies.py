"""Ranges of ids written end to end: by a C kernel, or by numpy where there is no compiler.

Shapes: n = ranges, V = values of all of them.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import numpy as np

from losses.kernels.native import library_of
from trainer.data.jagged import Ranges, take_ranges

SOURCE = Path(__file__).with_name("copy_ranges.c")
KERNELS = {"int32": "copy_ranges_32", "int64": "copy_ranges_64"}


def size_of(ranges: Ranges) -> int:
    """V."""
    return int((ranges.stop - ranges.start).sum())


def copy_ranges(ranges: Ranges, out_V: np.ndarray) -> None:
    """Write the values of all ranges, one after the other, into int64 [V]."""
    kernel = _kernel(ranges.values.dtype.name)
    contiguous = (ranges.values, ranges.start, ranges.stop, out_V)
    if kernel is None or not all(each.flags.c_contiguous for each in contiguous):
        out_V[:] = take_ranges(ranges.values, ranges.start, ranges.stop).values
        return
    assert out_V.dtype == ranges.start.dtype == ranges.stop.dtype == np.int64
    addresses = [ctypes.c_void_p(each.ctypes.data) for each in contiguous]
    count = ctypes.c_int64(len(ranges.start))
    kernel(*addresses[:3], count, addresses[3])


@lru_cache
def _kernel(of: str) -> ctypes._NamedFuncPointer | None:
    """The kernel of a type of ids; None without a compiler, or of another type."""
    library, _ = library_of(SOURCE)
    if library is None or of not in KERNELS:
        return None
    kernel = getattr(library, KERNELS[of])
    kernel.restype = None
    return kernel  # type: ignore[no-any-return]
