"""Bags of ids as (values, lengths) or (values, offsets) in numpy: the few operations on them.

Shapes: n = bags, V = values of all bags. All int64 but where said; no Python per bag or value.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

BAGS_AT_ONCE = 4096


class Jagged(NamedTuple):
    """n bags: bag i holds values[offsets[i] : offsets[i + 1]]."""

    values: np.ndarray
    """Ids of all bags in order, [V]."""
    offsets: np.ndarray
    """Start of each bag, then V, int64 [n + 1]; need not start at 0."""


class Ranges(NamedTuple):
    """n bags that may overlap: bag i holds values[start[i] : stop[i]]."""

    values: np.ndarray
    start: np.ndarray
    """int64 [n]."""
    stop: np.ndarray
    """int64 [n]."""


Column = np.ndarray | Jagged
"""A feature of n rows: one value each ([n]), or bags."""


def offsets_of(lengths_n: np.ndarray) -> np.ndarray:
    """Start of each bag, then the end of the last, int64 [n + 1]: the sum of what lies before."""
    offsets = np.zeros(len(lengths_n) + 1, dtype=np.int64)
    np.cumsum(lengths_n, out=offsets[1:])
    return offsets


def spread(column: Column, real_n: np.ndarray) -> Jagged:
    """The rows of `column` at the true places of `real_n` (bool [n]), empty bags between them."""
    lengths_n = np.zeros(len(real_n), dtype=np.int64)
    if isinstance(column, Jagged):
        lengths_n[real_n] = np.diff(column.offsets)
        return Jagged(column.values, offsets_of(lengths_n))
    lengths_n[real_n] = 1
    return Jagged(column, offsets_of(lengths_n))


def take_bags(bags: Jagged, rows: np.ndarray) -> Jagged:
    """The bags `rows` in that order. Cost follows the rows taken, not the bags there are."""
    return take_ranges(bags.values, bags.offsets.take(rows), bags.offsets[1:].take(rows))


def take_ranges(values: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Jagged:
    """Bag i is values[start[i] : stop[i]]; ranges may overlap and come in any order.

    Goes by blocks of bags, so that the index stays in the cache: half the time of one pass.
    """
    offsets = offsets_of(stop - start)
    taken = np.empty(offsets[-1], dtype=values.dtype)
    for first in range(0, len(start), BAGS_AT_ONCE):
        block = slice(first, first + BAGS_AT_ONCE)
        begin, end = offsets[first], offsets[min(first + BAGS_AT_ONCE, len(start))]
        shift = stop[block] - offsets[1:][block]
        index = np.repeat(shift, stop[block] - start[block])
        index += np.arange(begin, end)
        np.take(values, index, out=taken[begin:end], mode="clip")
    return Jagged(taken, offsets)


def concatenate(parts: list[Jagged], dtype: type[np.signedinteger] = np.int64) -> Jagged:
    """All bags of `parts` in order, their values as `dtype`, which must hold them."""
    sizes = np.array([part.offsets[-1] - part.offsets[0] for part in parts])
    shift = np.cumsum(sizes) - sizes
    offsets = [
        part.offsets[:-1] + (start - part.offsets[0])
        for part, start in zip(parts, shift, strict=True)
    ]
    values = [part.values[part.offsets[0] : part.offsets[-1]] for part in parts]
    return Jagged(
        np.concatenate(values, dtype=dtype), np.concatenate([*offsets, np.array([sizes.sum()])])
    )


def from_arrow(column: pa.ChunkedArray) -> Jagged:
    """A list column without nulls; no copy where it is one chunk."""
    parts = []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy().astype(np.int64)
        parts.append(Jagged(chunk.values.to_numpy(zero_copy_only=True), offsets))
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Jagged(np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
    return concatenate(parts)
