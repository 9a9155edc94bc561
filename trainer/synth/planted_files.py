"""Files of a planted dataset: parts as they are drawn, tables at the end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.events.event_files import EventWriter, Layout, part_file, splits_of
from trainer.data.schema import (
    DISLIKED,
    LIKED,
    SCHEMA_VERSION,
    Dataset,
    EventWindow,
    combined_digest,
    record_of,
)
from trainer.synth.planted import PlantedModel
from trainer.synth.planted_parquet import (
    ITEMS_AT_ONCE,
    ROW_GROUP_ROWS,
    attributes_of,
    options,
    write,
)
from trainer.synth.planted_rows import PartRows, as_list
from trainer.synth.planted_tables import (
    ITEM_ATTRIBUTES,
    USER_ATTRIBUTES,
    VOCABULARIES,
    titles,
    user_attributes,
)

KINDS = (LIKED, DISLIKED)


@dataclass(frozen=True)
class PartTables:
    """What of a part belongs into files that all parts share."""

    count_SK: np.ndarray
    """Events by split and kind."""
    asked_S: np.ndarray
    """Users with a positive in each split."""
    users: pa.Table


class DatasetWriter:
    """Writes a prepared dataset. `write_part` from any thread, the rest from one."""

    def __init__(self, folder: Path, model: PlantedModel, seed: int, users: int) -> None:
        self._folder, self._model, self._seed = folder, model, seed
        self._num_users = users
        self._lock = threading.Lock()
        self._count_I = np.zeros(model.items, dtype=np.int32)
        self._later_I = np.zeros((2, model.items), dtype=np.int32)
        self._parts: list[PartTables] = []
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._values: dict[tuple[str, str], np.ndarray] = {}
        self._users = 0

    def write_part(self, number: int, part: PartRows, random: np.random.Generator) -> PartTables:
        """Write a part's events, and count them."""
        layout = Layout(self._num_users, self._model.items, KINDS, True, True)
        with EventWriter(self._folder / part_file(0, number), layout) as writer:
            writer.write(part.events())
        liked_M = part.draws.liked_M
        with self._lock:
            # A plain 1 is an int64: casting it to the counts' type costs twenty times the sum.
            np.add.at(self._count_I, part.item_M[liked_M & (part.split_M == 0)], np.int32(1))
            for split in (1, 2):
                held_M = liked_M & (part.split_M == split)
                np.add.at(self._later_I[split - 1], part.item_M[held_M], np.int32(1))
        users = len(part.is_held_U)
        country_U, interests = user_attributes(part.draws.taste_UT, random)
        table = pa.table(
            {
                "user": np.arange(users) + part.first_user,
                "raw_id": np.arange(users) + part.first_user + 1,
                "count": part.count_U(0),
                "count_with_validation": part.count_U(1),
                "count_of_all": part.count_U(2),
                "country": country_U,
                "interests": as_list(interests),
            }
        )
        return PartTables(writer.count_SK, writer.asked_S, table)

    def append(self, tables: PartTables) -> None:
        """Add a part's users to theirs; parts come in order."""
        self._parts.append(tables)
        self._users += len(tables.users)
        self._append("users", tables.users)
        for name in ("country", "interests"):
            self._count_values("user", name, _values_of(tables.users[name]))

    def finish(self, arguments: dict[str, Any], threads: int) -> Dataset:
        """Write items and vocabularies; the description of the whole."""
        slot_of_row_I = np.empty(self._model.items, dtype=np.int32)
        slot_of_row_I[self._model.row_of_slot_I] = np.arange(self._model.items, dtype=np.int32)
        with ThreadPoolExecutor(threads) as pool:
            firsts = range(0, self._model.items, ITEMS_AT_ONCE)
            for table in pool.map(partial(self._item_table, slot_of_row_I), firsts):
                self._append("items", table)
                for name in ("genre", "moods"):
                    self._count_values("item", name, _values_of(table[name]))
        for writer in self._writers.values():
            writer.close()
        self._write_vocabularies()
        return self._describe(arguments, threads)

    def _item_table(self, slot_of_row_I: np.ndarray, first: int) -> pa.Table:
        """Items `first` and those after it."""
        slot_n = slot_of_row_I[first : first + ITEMS_AT_ONCE].astype(np.int64)
        rows = slice(first, first + len(slot_n))
        genre_n, moods = attributes_of(slot_n, self._model, self._seed, first)
        train_n = self._count_I[rows].astype(np.int64)
        return pa.table(
            {
                "item": np.arange(rows.start, rows.stop),
                "raw_id": slot_n + 1,
                "title": titles(slot_n, self._model.clusters),
                "count": train_n,
                "count_with_validation": train_n + self._later_I[0, rows],
                "count_of_all": train_n + self._later_I[:, rows].sum(axis=0),
                "genre": genre_n,
                "moods": as_list(moods),
            }
        )

    def _append(self, name: str, table: pa.Table) -> None:
        if name not in self._writers:
            self._writers[name] = pq.ParquetWriter(
                self._folder / f"{name}.parquet", table.schema, **options(table.schema)
            )
        self._writers[name].write_table(table, row_group_size=ROW_GROUP_ROWS)

    def _count_values(self, side: str, name: str, values: np.ndarray) -> None:
        count = np.bincount(values, minlength=len(VOCABULARIES[name]) + 1)
        self._values[side, name] = self._values.get((side, name), 0) + count

    def _write_vocabularies(self) -> None:
        columns: dict[str, list[Any]] = {n: [] for n in ("side", "name", "row", "value", "count")}
        for (side, name), counts in self._values.items():
            for row, value in enumerate(("", *VOCABULARIES[name])):
                entry = (side, name, row, value, int(counts[row]))
                for column, each in zip(columns.values(), entry, strict=True):
                    column.append(each)
        write(pa.table(columns), self._folder / "attributes.parquet")

    def _describe(self, arguments: dict[str, Any], threads: int) -> Dataset:
        count_SK = np.sum([part.count_SK for part in self._parts], axis=0)
        asked_S = np.sum([part.asked_S for part in self._parts], axis=0)
        window = EventWindow(
            tuple(part_file(0, number) for number in range(len(self._parts))),
            self._users,
            int(count_SK.sum()),
        )
        names = sorted(str(p.relative_to(self._folder)) for p in self._folder.rglob("*.parquet"))
        with ThreadPoolExecutor(threads) as pool:
            files_record = dict(
                zip(names, pool.map(partial(record_of, self._folder), names), strict=True)
            )
        rule = {"rule": "leave-last-out"}
        rule.update({name: arguments[name] for name in ("held_out", "held_out_users")})
        return Dataset(
            path=str(self._folder),
            schema_version=SCHEMA_VERSION,
            num_users=self._users,
            num_items=self._model.items,
            window_rule=None,
            windows=(window,),
            kinds=KINDS,
            splits=splits_of(count_SK, KINDS, asked_S),
            split_rule=rule,
            history_length=arguments["history_length"],
            has_timestamps=True,
            dropped={},
            notes={},
            user_attributes=USER_ATTRIBUTES,
            item_attributes=ITEM_ATTRIBUTES,
            source={
                "format": "synth",
                "rows": window.events,
                "arguments": arguments,
                "attributes_left_out": {"user": {}, "item": {}},
            },
            parent_digest=None,
            files=files_record,
            digest=combined_digest(files_record),
        )


def _values_of(column: pa.ChunkedArray) -> np.ndarray:
    chunk = column.chunk(0)
    return (chunk.values if pa.types.is_list(chunk.type) else chunk).to_numpy()
