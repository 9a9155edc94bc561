"""Which items may be in an answer: all, those of a mask, or a few rows.

Shapes: I items, P rows that pass, n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SPARSE = 4
"""A chunk of which fewer than one in so many pass is gathered, not walked."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive items, or any: `rows` are all that may be answered with."""

    first: int
    stop: int
    rows: np.ndarray | None = None
    """Rows of those to look at alone; None: all from `first` to `stop`."""
    passes_n: np.ndarray | None = None
    """Of consecutive ones, which may be in the answer; None: all."""

    @property
    def place(self) -> slice | np.ndarray:
        """What to look at, as an index."""
        return slice(self.first, self.stop) if self.rows is None else self.rows


@dataclass(frozen=True)
class Passing:
    """The rows that pass. Neither `mask_I` nor `row_P`: all."""

    num_items: int
    mask_I: np.ndarray | None = None
    """bool [I]."""
    row_P: np.ndarray | None = None
    """int64, ascending."""

    @property
    def count(self) -> int:
        """How many pass."""
        if self.row_P is not None:
            return len(self.row_P)
        return self.num_items if self.mask_I is None else int(np.count_nonzero(self.mask_I))

    def with_mask(self, mask_I: np.ndarray | None) -> Passing:
        """Those that pass a mask, too."""
        if mask_I is None:
            return self
        if self.row_P is not None:
            return Passing(self.num_items, None, self.row_P[mask_I[self.row_P]])
        return Passing(self.num_items, mask_I if self.mask_I is None else self.mask_I & mask_I)

    def only(self, row_p: np.ndarray) -> Passing:
        """Those among some rows, too."""
        rows = np.unique(row_p)
        return Passing(self.num_items, None, rows[self.holds(rows)])

    def holds(self, row_n: np.ndarray) -> np.ndarray:
        """Which of some rows pass, bool [n]."""
        if self.row_P is not None:
            return np.isin(row_n, self.row_P)
        return np.ones(len(row_n), dtype=bool) if self.mask_I is None else self.mask_I[row_n]

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The items to look at, in ascending order, at most `size` at once."""
        if self.row_P is not None:
            for start in range(0, len(self.row_P), size):
                rows = self.row_P[start : start + size]
                yield Chunk(int(rows[0]), int(rows[-1]) + 1, rows)
            return
        for first in range(0, self.num_items, size):
            stop = min(first + size, self.num_items)
            if self.mask_I is None:
                yield Chunk(first, stop)
                continue
            mask_n = self.mask_I[first:stop]
            count = int(np.count_nonzero(mask_n))
            if count == stop - first:
                yield Chunk(first, stop)
            elif count * SPARSE < stop - first:
                if count:
                    yield Chunk(first, stop, np.flatnonzero(mask_n) + first)
            else:
                yield Chunk(first, stop, None, mask_n)
