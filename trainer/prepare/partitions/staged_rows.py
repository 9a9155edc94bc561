"""A partition's staged rows read into memory, once: arrays of one length, in no order.

Shapes: E = rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

UNKNOWN = -1
"""What stands for NULL among kinds and splits."""


@dataclass(frozen=True)
class StagedRows:
    """Rows of a partition's users."""

    user_E: np.ndarray
    item_E: np.ndarray
    kind_E: np.ndarray
    """The kind's number, or UNKNOWN for neutral ratings; int8."""
    moment_E: np.ndarray
    """The time, or the position where there is none; int64."""
    position_E: np.ndarray
    """Place in the source, int64."""
    given_E: np.ndarray
    """The split that the source names, or UNKNOWN; int8."""
    old_E: np.ndarray
    """The split in the dataset that is extended, or UNKNOWN; int8."""
    more: dict[str, np.ndarray] = field(default_factory=dict)
    """What else is staged of each row, by name: [E, ...] of any type."""

    def take(self, chosen: np.ndarray) -> StagedRows:
        """Some of the rows: places in the order that is wanted, or bool [E]."""
        return StagedRows(
            **{each.name: getattr(self, each.name)[chosen] for each in fields(self)[:-1]},
            more={name: values[chosen] for name, values in self.more.items()},
        )


COLUMNS = {each.name.removesuffix("_E"): each.name for each in fields(StagedRows)[:-1]}
"""Columns of the staged files that rows have by name; any other one travels in `more`."""
MARKS = ("given", "old")
"""Those that are staged only where there are such."""


def read_staged(staging: str, part: int) -> StagedRows:
    """The rows of a partition; none where all rows of its users were dropped."""
    files = sorted(Path(staging, f"rows/part={part}").glob("*.parquet"))
    if not files:
        wide, small = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int8)
        return StagedRows(wide, wide, small, wide, wide, small, small)
    tables = [pq.read_table(file, partitioning=None, memory_map=True) for file in files]
    names = dict.fromkeys([*MARKS, *(name for table in tables for name in table.column_names)])
    found: dict[str, Any] = {name: _column(tables, name) for name in names}
    known = {attribute: found.pop(column) for column, attribute in COLUMNS.items()}
    return StagedRows(**known, more=found)


def _column(tables: list[pa.Table], name: str) -> np.ndarray:
    """One column of all files; a mark that a file lacks is UNKNOWN."""
    parts = [
        _array(table.column(name))
        if name in table.column_names
        else np.broadcast_to(np.int8(UNKNOWN), len(table))
        for table in tables
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _array(column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count and pa.types.is_integer(column.type):
        column = column.fill_null(UNKNOWN)
    values: np.ndarray = column.to_numpy()
    return values
