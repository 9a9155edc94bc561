"""Files of a planted dataset: parts as they are drawn, tables at the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.events.event_files import Layout, splits_of
from trainer.data.feature_types import Attribute
from trainer.data.schema import SCHEMA_VERSION, Dataset, EventWindow, combined_digest, record_of
from trainer.synth.planted import PlantedModel
from trainer.synth.planted_extras import DEVICES, Extras, ItemFeatures, user_numbers
from trainer.synth.planted_features import (
    ITEM_NUMBERS,
    USER_NUMBERS,
    context_attributes,
    number_attributes,
    write_item_vectors,
)
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
from trainer.synth.planted_windows import Written, described_windows, write_events

WORDS = {**VOCABULARIES, "device": DEVICES}


@dataclass(frozen=True)
class PartTables:
    """What of a part belongs into files that all parts share."""

    written: list[Written]
    users: pa.Table


class DatasetWriter:
    """Writes a prepared dataset. `write_part` from any thread, the rest from one."""

    def __init__(
        self,
        folder: Path,
        model: PlantedModel,
        seed: int,
        users: int,
        history_length: int,
        extras: Extras,
        features: ItemFeatures,
    ) -> None:
        self._folder, self._model, self._seed = folder, model, seed
        self._num_users, self._history_length = users, history_length
        self._extras, self._features = extras, features
        self._lock = threading.Lock()
        self._count_I = np.zeros(model.items, dtype=np.int32)
        self._later_I = np.zeros((2, model.items), dtype=np.int32)
        self._parts: list[PartTables] = []
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._values: dict[tuple[str, str], np.ndarray] = {}
        self._users = 0

    def write_part(self, number: int, part: PartRows, random: np.random.Generator) -> PartTables:
        """Write a part's events, and count them."""
        written = write_events(
            self._folder, number, part, self._layout, self._extras.windows, self._history_length
        )
        liked_M = part.draws.liked_M
        with self._lock:
            # A plain 1 is an int64: casting it to the counts' type costs twenty times the sum.
            np.add.at(self._count_I, part.item_M[liked_M & (part.split_M == 0)], np.int32(1))
            for split in (1, 2):
                held_M = liked_M & (part.split_M == split)
                np.add.at(self._later_I[split - 1], part.item_M[held_M], np.int32(1))
        users = len(part.is_held_U)
        country_U, interests = user_attributes(part.draws.taste_UT, random)
        columns = {
            "user": np.arange(users) + part.first_user,
            "raw_id": np.arange(users) + part.first_user + 1,
            "count": part.count_U(0),
            "count_with_validation": part.count_U(1),
            "count_of_all": part.count_U(2),
            "country": country_U,
            "interests": as_list(interests),
        }
        if self._extras.numbers:
            columns |= user_numbers(part.draws.taste_UT, random)
        return PartTables(written, pa.table(columns))

    @property
    def _layout(self) -> Layout:
        """Of the events of the first window."""
        more: dict[str, pa.DataType] = {"weight": pa.float32()} if self._extras.weights else {}
        if self._extras.context:
            more |= {"context.device": pa.int32(), "context.minutes": pa.float32()}
        kinds = self._extras.event_kinds
        return Layout(self._num_users, self._model.items, kinds, True, True, more=more)

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
        written = [each for part in self._parts for each in part.written]
        windows = described_windows(written, self._extras.windows)
        vectors = write_item_vectors(self._folder, self._model, self._extras, self._features)
        context: tuple[Attribute, ...] = ()
        if self._extras.context:
            context, device_counts = context_attributes(self._folder, windows)
            self._values["context", "device"] = np.array(device_counts)
        self._write_vocabularies()
        numbers = {"item": ITEM_NUMBERS, "user": USER_NUMBERS} if self._extras.numbers else {}
        number = {
            side: number_attributes(self._folder, side, names) for side, names in numbers.items()
        }
        dataset = self._describe(arguments, threads, written, windows)
        return replace(
            dataset,
            item_attributes=(*ITEM_ATTRIBUTES, *number.get("item", ()), *vectors),
            user_attributes=(*USER_ATTRIBUTES, *number.get("user", ())),
            context_attributes=context,
            has_weights=self._extras.weights,
        )

    def _item_table(self, slot_of_row_I: np.ndarray, first: int) -> pa.Table:
        """Items `first` and those after it."""
        slot_n = slot_of_row_I[first : first + ITEMS_AT_ONCE].astype(np.int64)
        rows = slice(first, first + len(slot_n))
        genre_n, moods = attributes_of(slot_n, self._model, self._seed, first)
        train_n = self._count_I[rows].astype(np.int64)
        columns = {
            "item": np.arange(rows.start, rows.stop),
            "raw_id": slot_n + 1,
            "title": titles(slot_n, self._model.clusters),
            "count": train_n,
            "count_with_validation": train_n + self._later_I[0, rows],
            "count_of_all": train_n + self._later_I[:, rows].sum(axis=0),
            "genre": genre_n,
            "moods": as_list(moods),
        }
        return pa.table(
            columns | {name: each[slot_n] for name, each in self._features.numbers.items()}
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
            for row, value in enumerate(("", *WORDS[name])):
                entry = (side, name, row, value, int(counts[row]))
                for column, each in zip(columns.values(), entry, strict=True):
                    column.append(each)
        write(pa.table(columns), self._folder / "attributes.parquet")

    def _describe(
        self,
        arguments: dict[str, Any],
        threads: int,
        written: Sequence[Written],
        windows: tuple[EventWindow, ...],
    ) -> Dataset:
        count_SK = np.sum([each.count_SK for each in written], axis=0)
        newest = [each for each in written if each.window == self._extras.windows - 1]
        asked_S = np.sum([each.asked_S for each in newest], axis=0)
        names = sorted(
            str(path.relative_to(self._folder))
            for path in self._folder.rglob("*")
            if path.suffix in (".parquet", ".f16")
        )
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
            window_rule="day" if self._extras.windows > 1 else None,
            windows=windows,
            kinds=self._extras.event_kinds,
            splits=splits_of(count_SK, self._extras.event_kinds, asked_S),
            split_rule=rule,
            history_length=arguments["history_length"],
            has_timestamps=True,
            dropped={},
            notes={},
            user_attributes=USER_ATTRIBUTES,
            item_attributes=ITEM_ATTRIBUTES,
            source={
                "format": "synth",
                "rows": sum(window.events for window in windows),
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
