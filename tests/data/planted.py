"""Small sources written to disk, and prepared datasets read back as plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from tests.definitions import events_of
from trainer.data.jagged import take_ranges
from trainer.data.schema import Dataset
from trainer.loader.order import EpochOrder
from trainer.loader.windows import RowGroups
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import PrepareArguments, prepare
from trainer.retrieval.queries import LIST_COLUMNS, read_queries
from trainer.retrieval.search.item_lists import ItemLists


class Row(NamedTuple):
    """One interaction as the source has it."""

    user: int | str
    item: int | str
    rating: float | None = None
    timestamp: int | None = None


def write_csv(path: Path, rows: list[Row]) -> Path:
    """Rows as CSV, without the columns that no row has."""
    names = [
        name
        for name in ("user", "item", "rating", "timestamp")
        if any(getattr(row, name) is not None for row in rows)
    ]
    lines = [",".join(str(getattr(row, name)) for name in names) for row in rows]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


def make(source: Path | str, out: Path, **arguments: Any) -> Dataset:
    """Prepare without showing progress, with limits that suit tests; read the description."""
    options = {"memory_limit": "256MB", "threads": 1, **arguments}
    prepare(PrepareArguments(str(source), str(out), **options), SilentProgress())
    return Dataset.load(out, verify="digest")


def interactions(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    """Events of a split in the order of the files; those of train as the loader gives them.

    That is with `history` and, where the data have such, `disliked`.
    """
    lists = trained(dataset) if split == "train" else {}
    rows = []
    for event in events_of(dataset):
        if event.split == split:
            row = {"user": event.user, "item": event.item, "feedback": event.feedback}
            time = {} if event.time is None else {"timestamp": event.time}
            rows.append({**row, **time, **lists.get((event.user, event.item), {})})
    return rows


def trained(
    dataset: Dataset, splits: tuple[str, ...] = ("train",), epoch: int = 0
) -> dict[tuple[int, int], dict[str, list[int]]]:
    """The lists of every row of an epoch, by user and item."""
    names = ("history", "disliked") if dataset.has_feedback else ("history",)
    groups = RowGroups(
        dataset, splits, names, positives_only=False, history_length=None, skip_corrupt=False
    )
    order = EpochOrder(groups.rows_G, seed=0, epoch=epoch, window_rows=1 << 10)
    found = {}
    for number in range(order.num_windows):
        rows = groups.window(order, number, seed=0)
        lists = {name: take_ranges(*rows.lists[name]) for name in names}
        for row, pair in enumerate(zip(rows.user_n.tolist(), rows.item_n.tolist(), strict=True)):
            assert pair not in found
            found[pair] = {
                name: each.values[each.offsets[row] : each.offsets[row + 1]].tolist()
                for name, each in lists.items()
            }
    assert len(found) == order.num_rows
    return found


def queries(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    """Queries of a split as evaluation reads them: user, targets, seen, history, ..."""
    rows: list[dict[str, Any]] = []
    for block in read_queries(dataset, split, np.arange(dataset.splits[split].queries), 64):
        for row, user in enumerate(block.user_Q.tolist()):
            each = {name: list_at(getattr(block, name), row) for name in LIST_COLUMNS}
            rows.append({"user": user, **each})
    return rows


def list_at(lists: ItemLists, row: int) -> list[int]:
    """The items of one row."""
    start, stop = lists.offsets[row : row + 2].tolist()
    return [int(each) for each in lists.values[start:stop]]


def table(dataset: Dataset, name: str) -> list[dict[str, Any]]:
    """Rows of items.parquet, users.parquet or attributes.parquet."""
    return list(pq.read_table(dataset.file(f"{name}.parquet")).to_pylist())


def some_rows(users: int = 6, items: int = 9, each: int = 8) -> list[Row]:
    """Users with `each` different items, later and later, without ratings."""
    return [
        Row(user, 100 + (user * 5 + n) % items, None, 1000 * n + user)
        for n in range(each)
        for user in range(users)
    ]
