"""Ranges of ids written end to end: by a C kernel, or by numpy where there is no compiler.

Shapes: n = ranges, V = values of all of them.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import numpy as np

from losses.kernels.native import library_of
from trainer.data.jagged import Jagged, Ranges, offsets_of, take_ranges

SOURCE = Path(__file__).with_name("copy_ranges.c")


def size_of(ranges: Ranges) -> int:
    """V."""
    return int((ranges.stop - ranges.start).sum())


def copy_ranges(ranges: Ranges, out_V: np.ndarray) -> None:
    """Write the values of all ranges, one after the other, into int64 [V]."""
    assert out_V.dtype == np.int64
    size = ranges.values.itemsize
    if not _copied("copy_ranges_8" if size == 8 else f"widen_ranges_{size}", ranges, out_V):
        out_V[:] = take_ranges(*ranges).values


def copy_bags(bags: Jagged, row_n: np.ndarray) -> Jagged:
    """The bags `row_n` in that order, as `take_bags`: values keep their type."""
    ranges, offsets = _found(bags, row_n)
    out_V = np.empty(offsets[-1], dtype=bags.values.dtype)
    if not _copied(f"copy_ranges_{bags.values.itemsize}", ranges, out_V):
        return take_ranges(*ranges)
    return Jagged(out_V, offsets)


def _found(bags: Jagged, row_n: np.ndarray) -> tuple[Ranges, np.ndarray]:
    """The bags `row_n` where they lie, and their offsets when they lie end to end."""
    kernel = _kernel("find_bags")
    if kernel is None or bags.offsets.dtype != np.int32 or row_n.dtype != np.int32:
        ranges = Ranges(bags.values, bags.offsets.take(row_n), bags.offsets[1:].take(row_n))
        return ranges, offsets_of(ranges.stop - ranges.start)
    if len(row_n) and not 0 <= int(row_n.min()) <= int(row_n.max()) < len(bags.offsets) - 1:
        raise IndexError(f"rows {row_n.min()}..{row_n.max()} of {len(bags.offsets) - 1} bags")
    start_n, stop_n = np.empty((2, len(row_n)), dtype=np.int64)
    offsets = np.empty(len(row_n) + 1, dtype=np.int64)
    kernel(
        ctypes.c_void_p(np.ascontiguousarray(bags.offsets).ctypes.data),
        ctypes.c_void_p(row_n.ctypes.data),
        *map(ctypes.c_int64, (row_n.strides[0], len(row_n))),
        *(ctypes.c_void_p(each.ctypes.data) for each in (start_n, stop_n, offsets)),
    )
    return Ranges(bags.values, start_n, stop_n), offsets


def _copied(kernel_name: str, ranges: Ranges, out_V: np.ndarray) -> bool:
    """Have a kernel write the ranges; False where there is none for them."""
    kernel = _kernel(kernel_name)
    start, stop = (each.astype(np.int64, copy=False) for each in (ranges.start, ranges.stop))
    arrays = (ranges.values, start, stop, out_V)
    if kernel is None or not all(each.flags.c_contiguous for each in arrays):
        return False
    addresses = [ctypes.c_void_p(each.ctypes.data) for each in arrays]
    kernel(*addresses[:3], ctypes.c_int64(len(start)), addresses[3])
    return True


@lru_cache
def _kernel(name: str) -> ctypes._NamedFuncPointer | None:
    """A kernel by its name; None without a compiler, or where there is none of that name."""
    library, _ = library_of(SOURCE)
    kernel = getattr(library, name, None)
    if kernel is not None:
        kernel.restype = None
    return kernel
