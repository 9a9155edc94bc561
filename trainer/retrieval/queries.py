"""Held-out queries read from queries/<split>.parquet in blocks, all of them or a sample.

Every rank reads the same blocks; who encodes which of their rows is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.data.jagged import from_arrow
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset
from trainer.retrieval.search.item_lists import ItemLists

ROWS_READ_AT_ONCE = 1 << 16
LIST_COLUMNS = ("targets", "disliked_targets", "seen", "history", "disliked")


@dataclass(frozen=True)
class QueryBlock:
    """Users of a split with what is held out for them, and what is known of them before it."""

    user_Q: Tensor
    """User rows, int64; -1 in padding."""
    targets: ItemLists
    """Items each user liked in the split."""
    disliked_targets: ItemLists
    """Items each user disliked in the split."""
    seen: ItemLists
    """Items left out of each user's ranking, sorted."""
    history: ItemLists
    """Liked items before the split, oldest first."""
    disliked: ItemLists
    """Disliked items before the split, oldest first."""

    def __len__(self) -> int:
        return len(self.user_Q)

    def padded(self, num_queries: int) -> QueryBlock:
        """With queries of nobody at the end, up to `num_queries`."""
        user_Q = torch.nn.functional.pad(self.user_Q, (0, num_queries - len(self)), value=-1)
        return QueryBlock(
            user_Q, *(getattr(self, name).padded(num_queries) for name in LIST_COLUMNS)
        )

    def slice(self, start: int, stop: int) -> QueryBlock:
        """Queries start..stop-1."""
        lists = (getattr(self, name).slice(start, stop) for name in LIST_COLUMNS)
        return QueryBlock(self.user_Q[start:stop], *lists)


def sample_rows(num_rows: int, sample: int | None, seed: int) -> np.ndarray:
    """Sorted rows of a sample without replacement; all rows where `sample` is None or larger."""
    if sample is None or sample >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, sample, replace=False))


def read_queries(
    dataset: Dataset, split: str, rows: np.ndarray, block_size: int
) -> Iterator[QueryBlock]:
    """Blocks of `block_size` of the queries at `rows` (sorted), the last one smaller."""
    waiting: list[pa.Table] = []
    with open_parquet(dataset.queries_file(split)) as file:
        wanted = [name for name in ("user", *LIST_COLUMNS) if name in file.schema_arrow.names]
        start = 0
        for batch in file.iter_batches(ROWS_READ_AT_ONCE, columns=wanted):
            _check_ids(batch, dataset, dataset.queries_file(split))
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            waiting.append(pa.Table.from_batches([batch]).take(rows[first:last] - start))
            start += len(batch)
            table = pa.concat_tables(waiting)
            whole = len(table) - len(table) % block_size
            for at in range(0, whole, block_size):
                yield _block(table.slice(at, block_size))
            waiting = [table.slice(whole)]
    rest = pa.concat_tables(waiting) if waiting else ()
    if len(rest):
        yield _block(rest)


def _check_ids(batch: pa.RecordBatch, dataset: Dataset, path: str) -> None:
    """Raise Mistake where a query names a user or an item that the dataset has not."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        limit = dataset.num_users if name == "user" else dataset.num_items
        values = column if name == "user" else column.flatten()
        if column.null_count or values.null_count:
            raise Mistake(f"{path} column {name!r} has nulls: prepare the dataset again")
        extent = pc.min_max(values)
        low, high = extent["min"].as_py(), extent["max"].as_py()
        if low is not None and (low < 0 or high >= limit):
            raise Mistake(
                f"{path} column {name!r} holds id {low if low < 0 else high}, outside "
                f"0..{limit - 1} of dataset.json: prepare the dataset again"
            )


def _block(table: pa.Table) -> QueryBlock:
    table = table.combine_chunks()
    empty = ItemLists(torch.empty(0, dtype=torch.int64), torch.zeros(len(table) + 1).long())

    def lists(name: str) -> ItemLists:
        if name not in table.column_names:
            return empty
        return ItemLists.from_jagged(from_arrow(table.column(name)))

    user_Q = torch.from_numpy(table.column("user").to_numpy().astype(np.int64))
    return QueryBlock(user_Q, *(lists(name) for name in LIST_COLUMNS))
