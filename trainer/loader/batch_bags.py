"""The bags of a batch put together in two calls, whatever the keys and the windows are.

A batch takes rows from each stream's window: with eight of them and seven keys numpy would make
hundreds of small copies, and the one thread that builds batches is what a fast loader waits for.

Shapes: K = keys, P = pieces of a batch, S = stride, V = values of all keys.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from losses.kernels.native import library_of
from trainer.data.feature_bags import jagged_of
from trainer.data.jagged import Column, Jagged, Ranges

SOURCE = Path(__file__).with_name("batch_bags.c")
TYPES = {"u1": 1, "i1": -1, "i2": -2, "i4": -4, "i8": -8}
"""How the kernel calls a type of values."""


@dataclass(frozen=True)
class Addresses:
    """Where a window's columns lie in memory; the window keeps them alive."""

    table: np.ndarray
    """int64 [columns, 7]: as `struct column` of the kernel."""
    at: int
    """Of the table."""


def addresses_of(
    columns: Mapping[str, Column | Ranges], keys: Sequence[str], further: Sequence[np.ndarray] = ()
) -> Addresses | None:
    """The addresses of all keys, then of further columns; None where the kernel cannot read one."""
    found = [_address(columns[key]) for key in keys if key in columns]
    found += map(_address, further)
    if len(found) < len(keys) + len(further) or None in found or _library() is None:
        return None
    table = np.array(found, dtype=np.int64).reshape(-1, 7)
    return Addresses(table, table.ctypes.data)


def _address(column: Column | Ranges) -> tuple[int, ...] | None:
    values: np.ndarray
    bounds: tuple[np.ndarray, ...] = ()
    if isinstance(column, Ranges):
        values, bounds = column.values, (column.start, column.stop)
    elif isinstance(column, Jagged):
        values, bounds = column.values, (column.offsets, column.offsets[1:])
    else:
        values = column
    code = TYPES.get(values.dtype.str[1:])
    if code is None or (bounds and not values.flags.c_contiguous):
        return None
    here = values.ctypes.data
    if not bounds:
        return here, here, 0, 0, values.strides[0], code, 0
    (step, size), *other = {(each.strides[0], each.dtype.str[1:]) for each in bounds}
    if other or size not in ("i4", "i8"):
        return None
    start, stop = (each.ctypes.data for each in bounds)
    return here, here + values.nbytes, start, stop, step, code, int(size[1])


class Parts(NamedTuple):
    """What a batch is made of, but for its dense features."""

    user_B: np.ndarray
    """int64, as are the next two."""
    item_S: np.ndarray
    count_S: np.ndarray
    feedback_B: np.ndarray
    """int8."""
    weight_B: np.ndarray
    """float32."""
    features: KeyedJaggedTensor
    real_rows: int
    """Rows that have a user."""


def parts_of(
    pieces: Sequence[tuple[Addresses, int, int]],
    extra: tuple[Addresses, int, int] | None,
    keys: Sequence[str],
    query_keys: int,
) -> Parts:
    """The parts of a batch, by the kernel.

    Args:
        pieces: a window, its first row that is taken, and how many are.
        extra: the same of extra candidates, which come last; what is no candidate's is not read.
        keys: those of queries first.
        query_keys: how many these are.
    """
    library = _library()
    assert library is not None
    rows = sum(piece[2] for piece in pieces)
    taken = [*pieces, *([extra] if extra else [])]
    stride = rows + (extra[2] if extra else 0)
    packed = array("q", [number for each, *cut in taken for number in (each.at, *cut)])
    words = (len(keys), rows, stride, stride, len(keys) * stride, rows // 2 + 1, rows // 8 + 1)
    # One block for all of it: asking for an address costs more than to look the rows up.
    cuts = list(accumulate(words, initial=0))
    block = np.empty(cuts[-1], dtype=np.int64)
    size_K, user_B, item_S, count_S, lengths, weight_B, feedback_B = (
        block[begin:end] for begin, end in pairwise(cuts)
    )
    known = (len(keys), query_keys, len(taken), packed.buffer_info()[0], rows)
    first = block.ctypes.data
    real = library.batch_rows(*known, *(first + block.itemsize * cut for cut in cuts[:-1]))
    values_V = np.empty(size_K.sum(), dtype=np.int64)
    address = values_V.ctypes.data
    library.batch_values(*known, address, address + values_V.nbytes)
    return Parts(
        user_B,
        item_S,
        count_S,
        feedback_B.view(np.int8)[:rows],
        weight_B.view(np.float32)[:rows],
        jagged_of(keys, values_V, lengths.reshape(len(keys), stride), size_K),
        real,
    )


@lru_cache
def _library() -> ctypes.CDLL | None:
    library, _ = library_of(SOURCE)
    if library is not None:
        library.batch_rows.argtypes = [ctypes.c_int64] * 12
        library.batch_rows.restype = ctypes.c_int64
        library.batch_values.argtypes = [ctypes.c_int64] * 7
        library.batch_values.restype = None
    return library
