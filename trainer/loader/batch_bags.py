"""The bags of a batch put together in two calls, whatever the keys and the windows are.

A batch takes rows from each stream's window: with eight of them and seven keys numpy would make
hundreds of small copies, and the one thread that builds batches is what a fast loader waits for.

Shapes: K = keys, P = pieces of a batch, S = stride, V = values of all keys.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from losses.kernels.native import library_of
from trainer.data.jagged import Column, Jagged, Ranges

SOURCE = Path(__file__).with_name("batch_bags.c")
TYPES = {"u1": 1, "i1": -1, "i2": -2, "i4": -4, "i8": -8}
"""How the kernel calls a type of values."""


Addresses = np.ndarray
"""Where a window's columns lie in memory, int64 [5, K]; the window keeps them alive.

Addresses of values, starts and stops of bags (0 where a row has one value), bytes from one row to
the next among the values (0 where bags say where theirs are), and the type of the values.
"""


def addresses_of(columns: Mapping[str, Column | Ranges], keys: Sequence[str]) -> Addresses | None:
    """The addresses of all keys; None where the kernel cannot read one of them."""
    found = [_address(columns[key]) for key in keys if key in columns]
    if len(found) < len(keys) or None in found:
        return None
    return np.array(found, dtype=np.int64).reshape(-1, 5).T.copy()


def _address(column: Column | Ranges) -> tuple[int, int, int, int, int] | None:
    values: np.ndarray
    bounds: tuple[np.ndarray, ...] = ()
    if isinstance(column, Ranges):
        values, bounds = column.values, (column.start, column.stop)
    elif isinstance(column, Jagged):
        values, bounds = column.values, (column.offsets, column.offsets[1:])
    else:
        values = column
    code = TYPES.get(values.dtype.str[1:])
    if code is None or not values.flags.c_contiguous:
        return None
    if any(each.dtype != np.int64 or not each.flags.c_contiguous for each in bounds):
        return None
    start, stop = (each.ctypes.data for each in bounds) if bounds else (0, 0)
    return values.ctypes.data, start, stop, 0 if bounds else values.itemsize, code


def bags_of(
    pieces: Sequence[tuple[Addresses | None, int]], rows_KP: np.ndarray, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Values int64 [V], key after key, lengths int64 [K, S] and values of each key int64 [K].

    Args:
        pieces: the windows' addresses, and the first row of each.
        rows_KP: rows of each piece that a key has, int64.

    Returns:
        None without a compiler, or where the kernel cannot read a piece.
    """
    library = _library()
    known = [addresses for addresses, _ in pieces if addresses is not None]
    if library is None or len(known) < len(pieces):
        return None
    first_P = np.array([first for _, first in pieces], dtype=np.int64)
    values_KP, start_KP, stop_KP, step_KP, type_KP = np.stack(known, axis=2)
    values_KP += step_KP * first_P
    skipped_KP = (start_KP != 0) * first_P * start_KP.itemsize
    start_KP += skipped_KP
    stop_KP += skipped_KP
    keys, count = rows_KP.shape
    lengths_KS = np.zeros((keys, stride), dtype=np.int64)
    size_K = np.empty(keys, dtype=np.int64)
    sizes = [ctypes.c_int64(each) for each in (keys, count, stride)]
    rows_KP = np.ascontiguousarray(rows_KP)
    bounds = [_pointer(each) for each in (start_KP, stop_KP, rows_KP)]
    library.bag_lengths(*sizes, *bounds, _pointer(lengths_KS), _pointer(size_K))
    values_V = np.empty(size_K.sum(), dtype=np.int64)
    library.bag_values(
        *sizes[:2], _pointer(values_KP), *bounds, _pointer(type_KP), _pointer(values_V)
    )
    return values_V, lengths_KS, size_K


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@lru_cache
def _library() -> ctypes.CDLL | None:
    library, _ = library_of(SOURCE)
    if library is not None:
        library.bag_lengths.restype = library.bag_values.restype = None
    return library
