"""`--max-per COLUMN=N`: at most N items of an answer that share a column's value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.base.typed import nearest
from trainer.bundle.choices import ATTRIBUTES


def group_codes(folder: Path, column: str) -> np.ndarray:
    """A number a value of a column, int32 [I]; -1 where it is missing.

    Raises:
        Mistake: for a column that is not there, or holds several values an item.
    """
    with pq.ParquetFile(folder / ATTRIBUTES, memory_map=True) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise Mistake(
                f"max_per {column!r:.60}: {nearest(column, names)}the items have {', '.join(names)}"
            )
        values = file.read(columns=[column]).column(0)
    if pa.types.is_list(values.type):
        raise Mistake(f"max_per {column}: items have several values of it; name another column")
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    encoded = pc.dictionary_encode(values).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    codes: np.ndarray = encoded.indices.fill_null(-1).to_numpy().astype(np.int32)
    return codes


class Quota:
    """How many items of each value an answer may still take, of one column or several."""

    def __init__(self, codes: Sequence[np.ndarray], limits: Sequence[int]) -> None:
        self.codes, self.limits = codes, limits
        self._left = [
            np.full(int(code_I.max(initial=-1)) + 2, limit)
            for code_I, limit in zip(codes, limits, strict=True)
        ]
        for left in self._left:
            left[-1] = np.iinfo(np.int64).max  # of those without a value, at place -1

    def takes(self, row: int) -> bool:
        """Whether an item may be in the answer; if so it is counted."""
        places = [int(code_I[row]) for code_I in self.codes]
        if any(left[place] <= 0 for left, place in zip(self._left, places, strict=True)):
            return False
        for left, place in zip(self._left, places, strict=True):
            left[place] -= 1
        return True

    def open(self, row_n: np.ndarray | None = None) -> np.ndarray:
        """Of some rows or all, which may still be taken, bool."""
        masks = []
        for code_I, left in zip(self.codes, self._left, strict=True):
            masks.append((left > 0)[code_I if row_n is None else code_I[row_n]])
        return np.logical_and.reduce(masks)
