"""From raw ids to rows, and from item rows to raw ids and titles."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.data.schema import Dataset
from trainer.data.storage import filesystem_of, open_parquet
from trainer.mistake import Mistake

ROWS_READ_AT_ONCE = 1 << 18
IDS_COMPARED = 50_000


@dataclass(frozen=True)
class Item:
    """An item as a person knows it."""

    row: int
    raw_id: int | str
    title: str | None

    @property
    def label(self) -> str:
        """The title with the raw id, or the raw id alone."""
        return f"{self.title} ({self.raw_id})" if self.title else str(self.raw_id)


def find_rows(dataset: Dataset, side: Literal["user", "item"], raw_ids: Sequence[str]) -> list[int]:
    """Rows of raw ids, in their order. Reads the ids' column once, without keeping it.

    Raises:
        Mistake: for an id that is not there, with near ones.
    """
    path = dataset.file(f"{side}s.parquet")
    found: dict[Any, int] = {}
    with open_parquet(path) as file:
        kind = file.schema_arrow.field("raw_id").type
        wanted = [_as_id(raw_id, kind, side) for raw_id in raw_ids]
        values = pa.array(wanted, kind)
        some: list[Any] = []
        start = 0
        for batch in file.iter_batches(ROWS_READ_AT_ONCE, columns=["raw_id"]):
            column = batch.column(0)
            hits = pc.indices_nonzero(pc.is_in(column, value_set=values)).to_pylist()
            found |= {column[hit].as_py(): start + hit for hit in hits}
            some += column.slice(0, max(IDS_COMPARED - len(some), 0)).to_pylist()
            start += len(column)
    for raw_id in wanted:
        if raw_id not in found:
            raise Mistake(f"no {side} {raw_id!r} in {dataset.path}: {_near(raw_id, some)}")
    return [found[raw_id] for raw_id in wanted]


def name_items(dataset: Dataset, rows: Sequence[int]) -> list[Item]:
    """Raw ids and titles of item rows, in their order. Reads only the row groups they are in."""
    if not rows:
        return []
    filesystem, path = filesystem_of(dataset.file("items.parquet"))
    table = pq.read_table(
        path,
        filesystem=filesystem,
        columns=["item", "raw_id", "title"],
        filters=pc.field("item").isin(sorted(set(rows))),
    )
    items = {
        each["item"]: Item(each["item"], each["raw_id"], each["title"])
        for each in table.to_pylist()
    }
    return [items[row] for row in rows]


def _as_id(raw_id: str, kind: pa.DataType, side: str) -> int | str:
    if not pa.types.is_integer(kind):
        return raw_id
    try:
        return int(raw_id)
    except ValueError as error:
        raise Mistake(f"{side} {raw_id!r}: the ids of this dataset are whole numbers") from error


def _near(raw_id: int | str, some: list[Any]) -> str:
    names = [str(each) for each in some]
    close = difflib.get_close_matches(str(raw_id), names, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"ids look like {', '.join(names[:3])}"
