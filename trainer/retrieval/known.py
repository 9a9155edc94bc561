"""What is known of users today: all their interactions of train and validation, not of test.

Recommending and exporting take histories up to the present; evaluation takes them as they were at
the split's start, from queries/<split>.parquet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import torch

from trainer.data.jagged import Jagged, from_arrow
from trainer.data.schema import Dataset
from trainer.prepare.histories import latest
from trainer.retrieval.search.item_lists import ItemLists
from trainer.sources import sql

SPLITS = ("train", "validation")


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


def known_at(dataset: Dataset, rows: Sequence[int]) -> KnownUsers:
    """Users of any rows, in their order, without what they have seen; `first` is -1.

    One pass over the interactions.
    """
    order = sorted(set(rows))
    place = {row: at for at, row in enumerate(order)}
    found: dict[int, tuple[list[int], list[int]]] = {}
    if dataset.history_length and order:
        with sql.in_memory(torch.get_num_threads()) as connection:
            among = ", ".join(map(str, order))
            reader = _select(connection, dataset, f"user IN ({among})", with_seen=False)
            for batch in reader:
                for each in batch.to_pylist():
                    found[place[each["user"]]] = (each["history"] or [], each["disliked"] or [])
    lists = [found.get(place[row], ([], [])) for row in rows]
    history, disliked = (ItemLists.from_lists([each[side] for each in lists]) for side in (0, 1))
    return KnownUsers(-1, history, disliked, ItemLists.from_lists([[] for _ in rows]))


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
    with sql.in_memory(torch.get_num_threads()) as connection:
        among = f"user >= {first} AND user < {stop}"
        reader = _select(connection, dataset, among, with_seen)
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


def _select(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, among: str, with_seen: bool
) -> pa.RecordBatchReader:
    """Rows of users that fulfil `among`, a condition in SQL."""
    files = [file for split in SPLITS for file in dataset.split_files(split)]
    liked, disliked = (latest(feedback, dataset.history_length) for feedback in (1, -1))
    seen = "list(DISTINCT item ORDER BY item)" if with_seen else "[]::BIGINT[]"
    rows = sql.parquet(connection, files)
    position = "position" if "position" in sql.columns_of(connection, rows) else "0"
    moment = "timestamp" if dataset.has_timestamps else position
    query = f"""SELECT user, {liked} AS history, {disliked} AS disliked, {seen} AS seen
        FROM (SELECT user, item, feedback, {moment} AS moment, {position} AS position
            FROM {rows} WHERE {among})
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
