"""What is known of users today: all their interactions of train and validation, not of test.

Recommending and exporting take histories up to the present; evaluation takes them as they were at
the split's start, from queries/<split>.parquet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import torch

from trainer.data import sql
from trainer.data.jagged import Jagged, from_arrow
from trainer.data.schema import Dataset
from trainer.machine import usable_cpus, usable_memory_bytes
from trainer.ranks import Ranks
from trainer.retrieval.item_lists import ItemLists

SPLITS = ("train", "validation")
LEAST_MEMORY_MB = 64


@dataclass(frozen=True)
class KnownUsers:
    """Users first..first + n - 1, all of them, also those without a single interaction."""

    first: int
    history: ItemLists
    """Liked items, oldest first, the last `history_length` of them."""
    disliked: ItemLists
    """Disliked items likewise."""
    seen: ItemLists
    """All items, sorted; empty unless asked for."""


def known_users(
    dataset: Dataset, first: int, stop: int, with_seen: bool, block_size: int
) -> Iterator[KnownUsers]:
    """Users first..stop-1 in blocks of `block_size`, in one pass over the interactions.

    Memory: DuckDB's, which spills to disk; time grows with the files, not with the users asked for.
    """
    starts = range(first, stop, block_size)
    if not dataset.history_length and not with_seen:
        for start in starts:
            nobody = _spread(np.empty(0, np.int64), None, start, min(start + block_size, stop))
            yield KnownUsers(start, nobody, nobody, nobody)
        return
    with _connection() as connection:
        reader = _select(connection, dataset, first, stop, with_seen)
        rest = reader.schema.empty_table()
        for start in starts:
            end = min(start + block_size, stop)
            while not len(rest) or rest.column("user")[-1].as_py() < end - 1:
                batch = next(reader, None)
                if batch is None:
                    break
                rest = pa.concat_tables([rest, pa.Table.from_batches([batch])])
            user = rest.column("user").to_numpy()
            cut = int(np.searchsorted(user, end))
            block, rest = rest.slice(0, cut), rest.slice(cut)
            yield KnownUsers(
                start,
                *(
                    _spread(user[:cut], from_arrow(block.column(name)), start, end)
                    for name in ("history", "disliked", "seen")
                ),
            )


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """Within this rank's share of the machine; half of the memory is the model's."""
    ranks = Ranks.from_environment().local_world_size
    memory_mb = max(usable_memory_bytes() // 2 // ranks // 1_000_000, LEAST_MEMORY_MB)
    with tempfile.TemporaryDirectory(prefix="tandem-") as spill:
        limits = sql.Resources(f"{memory_mb}MB", max(usable_cpus() // ranks, 1), spill)
        with closing(sql.connect(limits)) as connection:
            yield connection


def _select(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, first: int, stop: int, with_seen: bool
) -> pa.RecordBatchReader:
    files = [file for split in SPLITS for file in dataset.split_files(split)]
    filesystem = fsspec.core.url_to_fs(dataset.path)[0]
    if "file" not in filesystem.protocol:
        connection.register_filesystem(filesystem)
    order = "ORDER BY timestamp, item" if dataset.has_timestamps else "ORDER BY item"
    lists = {
        name: f"coalesce(list(item {order}) FILTER (feedback = {feedback}), []::BIGINT[])"
        f"[-{max(dataset.history_length, 1)}:]"
        for name, feedback in (("history", 1), ("disliked", -1))
    }
    seen = "list(DISTINCT item ORDER BY item)" if with_seen else "[]::BIGINT[]"
    query = f"""SELECT user, {lists["history"]} AS history, {lists["disliked"]} AS disliked,
            {seen} AS seen
        FROM read_parquet({sql.texts(files)}) WHERE user >= {first} AND user < {stop}
        GROUP BY user ORDER BY user"""
    return connection.sql(query).to_arrow_reader(1 << 15)


def _spread(user_n: np.ndarray, lists: Jagged | None, start: int, stop: int) -> ItemLists:
    """Lists of the users that have some, as lists of all users start..stop-1."""
    if lists is None:
        return ItemLists(torch.empty(0).long(), torch.zeros(stop - start + 1).long())
    found = ItemLists.from_jagged(lists)
    lengths = torch.zeros(stop - start, dtype=torch.int64)
    lengths[torch.from_numpy(user_n - start)] = found.lengths
    return ItemLists(found.values, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))
