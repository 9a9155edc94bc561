"""Small sources written to disk, and prepared datasets read back as plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from trainer.data.schema import Dataset
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import PrepareArguments, prepare


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
    """Rows of a split in the order of its files."""
    rows: list[dict[str, Any]] = []
    for name in dataset.split_files(split):
        rows.extend(pq.read_table(name).to_pylist())
    return rows


def queries(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    """Rows of queries/<split>.parquet."""
    return list(pq.read_table(dataset.queries_file(split)).to_pylist())


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
