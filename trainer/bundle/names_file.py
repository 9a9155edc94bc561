"""Raw ids (and titles) by row, and rows by raw id, without the ids in memory.

ids.arrow   raw_id, and title of items: Arrow IPC, a row a row, mapped
order.npy   rows by rising id: an id is found by halving, in about 2 log2(N) looks
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.base.mistake import Mistake
from trainer.bundle.flat_arrays import GrowingArray, mapped
from trainer.files.writing import written

IDS_COMPARED = 50_000
FEW = 1000
"""Up to so many ids are found one by one; more in a pass over all ids."""


def write_names(folder: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """ids.arrow from batches in the order of rows, then order.npy. Memory: the ids, once."""
    path = folder / "ids.arrow"
    with written(path) as stream, pa.ipc.new_file(stream, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    order = pc.sort_indices(_opened(path).column("raw_id"))
    with GrowingArray(folder / "order.npy", np.int32 if len(order) < 2**31 else np.int64) as array:
        array.append(order.to_numpy())


def _opened(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise Mistake(f"{path} is no Arrow file ({error}): export the bundle again") from error


class NamesFile:
    """One side's ids."""

    def __init__(self, folder: Path, side: Literal["user", "item"], rows: int) -> None:
        self.folder, self.side = folder, side
        table = _opened(folder / "ids.arrow")
        self.raw_id = table.column("raw_id")
        self.title = table.column("title") if "title" in table.column_names else None
        self._starts = [0, *np.cumsum([len(chunk) for chunk in self.raw_id.chunks]).tolist()]
        self._order = mapped(folder / "order.npy")
        if len(table) != rows or len(self._order) != rows:
            raise Mistake(
                f"{folder}/ids.arrow has {len(table):,} rows, the manifest says {rows:,}: "
                "export the bundle again"
            )

    def __len__(self) -> int:
        return len(self.raw_id)

    def id_of(self, row: int) -> int | str:
        """The raw id of a row."""
        return self._at(self.raw_id, row)  # type: ignore[no-any-return]

    def title_of(self, row: int) -> str | None:
        """The title of a row."""
        return None if self.title is None else self._at(self.title, row)

    def _at(self, column: pa.ChunkedArray, row: int) -> Any:
        chunk = bisect_right(self._starts, row) - 1
        return column.chunk(chunk)[row - self._starts[chunk]].as_py()

    def row_of(self, forms: str | Sequence[str]) -> int:
        """The row of an id, or of the first of its forms that is there.

        Raises:
            Mistake: where it is not there, with near ones.
        """
        given = [forms] if isinstance(forms, str) else list(forms)
        values = self.values_of(given)
        for value in values:
            row = self._found(value)
            if row is not None:
                return row
        where, near = self.folder.parent, self._near(given[-1])
        raise Mistake(f"no {self.side} {values[-1]!r:.80} in {where}: {near}")

    def titled(self, words: str) -> list[int]:
        """Rows whose title is `words`, whatever the case; where there is none, that hold them."""
        if self.title is None:
            return []
        exact = pc.equal(pc.utf8_lower(self.title), words.lower())
        if not pc.any(exact).as_py():
            exact = pc.match_substring(self.title, words, ignore_case=True)
        return [int(row) for row in pc.indices_nonzero(exact).to_pylist()]

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """Rows of many ids, int64; -1 for those that are not there."""
        kind = self.raw_id.type
        if len(ids) <= FEW:
            found = [next(iter(self._values(each)), None) for each in ids]
            rows = [None if value is None else self._found(value) for value in found]
            return np.array([-1 if row is None else row for row in rows], dtype=np.int64)
        values = pa.array([next(iter(self._values(each)), None) for each in ids], kind)
        unique = values.dictionary_encode()
        place = pc.index_in(self.raw_id, value_set=unique.dictionary).combine_chunks()
        row_u = np.full(len(unique.dictionary), -1, dtype=np.int64)
        hit = pc.indices_nonzero(pc.is_valid(place)).to_numpy().astype(np.int64)
        row_u[place.take(pa.array(hit)).to_numpy()] = hit
        code = unique.indices.fill_null(-1).to_numpy()
        return np.where(code >= 0, row_u[code], -1) if len(row_u) else np.full(len(ids), -1)

    def values_of(self, forms: Sequence[str]) -> list[Any]:
        """Forms of an id as values of the ids' type; `1_0` and `+10` are not the number 10.

        Raises:
            Mistake: where the ids are numbers, and none of the forms is one.
        """
        values = [value for form in forms for value in self._values(form)]
        if not values:
            least, most = _range_of(self.raw_id.type)
            raise Mistake(
                f"{self.side} {forms[0]!r:.80}: the ids of this dataset are whole numbers from "
                f"{least} to {most}"
            )
        return values

    def _values(self, form: str) -> list[Any]:
        kind = self.raw_id.type
        if not pa.types.is_integer(kind):
            return [form]
        digits = form.removeprefix("-")
        plain = digits.isascii() and digits.isdigit() and len(digits) < 40 and form != "-0"
        if not plain or (digits[0] == "0" and digits != "0"):
            return []
        least, most = _range_of(kind)
        return [number] if least <= (number := int(form)) <= most else []

    def _found(self, value: Any) -> int | None:
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            if self.id_of(int(self._order[middle])) < value:
                low = middle + 1
            else:
                high = middle
        if low == len(self._order):
            return None
        row = int(self._order[low])
        return row if self.id_of(row) == value else None

    def _near(self, raw_id: str) -> str:
        names = [str(each) for each in self.raw_id.slice(0, IDS_COMPARED).to_pylist()]
        if pa.types.is_integer(self.raw_id.type):  # near by digits is not near by meaning
            return f"ids are whole numbers, such as {', '.join(names[:3])}"
        close = difflib.get_close_matches(raw_id, names, n=3)
        if close:
            return f"did you mean {' or '.join(close)}?"
        return f"ids look like {', '.join(names[:3])}"


def _range_of(kind: pa.DataType) -> tuple[int, int]:
    bits = kind.bit_width
    if pa.types.is_unsigned_integer(kind):
        return 0, (1 << bits) - 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
