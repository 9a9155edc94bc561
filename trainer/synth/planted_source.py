"""The same planted data as a source that `prepare` reads: `synth --raw`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.jagged import Jagged
from trainer.synth.planted import PlantedModel
from trainer.synth.planted_eras import DAY, FIRST_DAY
from trainer.synth.planted_extras import (
    DEVICES,
    EVENTS,
    VECTORS_AT_ONCE,
    Extras,
    ItemFeatures,
    user_numbers,
)
from trainer.synth.planted_parquet import ITEMS_AT_ONCE, attributes_of, options, write
from trainer.synth.planted_rows import PartRows
from trainer.synth.planted_tables import VOCABULARIES, titles, user_attributes


class RawWriter:
    """Writes the same data as a source: `interactions/*.parquet` in time order of each user,
    `items.parquet` and `users.parquet` with titles and attributes as text."""

    def __init__(
        self, folder: Path, model: PlantedModel, seed: int, extras: Extras, features: ItemFeatures
    ) -> None:
        self._folder, self._model, self._seed = folder, model, seed
        self._extras, self._features = extras, features
        self._users: pq.ParquetWriter | None = None
        for window in range(extras.windows):
            (folder / "interactions" / self._window_folder(window)).mkdir(parents=True)

    def write_part(self, number: int, part: PartRows, random: np.random.Generator) -> pa.Table:
        """Write a part's interactions; its users with their attributes."""
        columns = {
            "user_id": part.draws.user_M + part.first_user + 1,
            "item_id": part.draws.slot_M + 1,
            **self._worth(part, random),
            "timestamp": part.timestamp_M,
        }
        if "weight" in part.more:
            columns["weight"] = part.more["weight"]
        if self._extras.context:
            columns["device"] = pa.array([None, *DEVICES]).take(
                pa.array(part.more["context.device"])
            )
            columns["minutes"] = pa.array(part.more["context.minutes"], from_pandas=True)
        table = pa.table(columns)
        for window in range(self._extras.windows):
            own = table if part.window_M is None else table.filter(part.window_M == window)
            if part.window_M is None or len(own):
                name = f"{self._window_folder(window)}/part-{number:05d}.parquet"
                write(own, self._folder / "interactions" / name)
        country_U, interests = user_attributes(part.draws.taste_UT, random)
        users = {
            "user_id": np.arange(len(country_U)) + part.first_user + 1,
            "country": _words("country", country_U),
            "interests": _word_lists("interests", interests),
        }
        if self._extras.numbers:
            numbers = user_numbers(part.draws.taste_UT, random)
            users |= {name: pa.array(each, from_pandas=True) for name, each in numbers.items()}
        return pa.table(users)

    def _worth(self, part: PartRows, random: np.random.Generator) -> dict[str, Any]:
        """The column that tells likes from dislikes: kinds of events, or ratings."""
        if self._extras.kinds:
            names = pa.array([kind.name for kind in EVENTS])
            return {"event": names.take(pa.array(part.kind_M))}
        liked_M = part.draws.liked_M
        # Some likes are a 4, most a 5; dislikes a 1 or a 2.
        rating_M = np.where(liked_M, 5, 2) - (random.random(len(liked_M)) < 0.3)
        return {"rating": rating_M.astype(np.float32)}

    def _window_folder(self, window: int) -> str:
        """Where a window's files lie, below `interactions`: a folder a day where there are days."""
        if self._extras.windows == 1:
            return "."
        return f"day={datetime.fromtimestamp(FIRST_DAY + window * DAY, UTC):%Y-%m-%d}"

    def append(self, users: pa.Table) -> None:
        """Add a part's users."""
        if self._users is None:
            path = self._folder / "users.parquet"
            self._users = pq.ParquetWriter(path, users.schema, **options(users.schema))
        self._users.write_table(users)

    def finish(self) -> None:
        """Write the items."""
        assert self._users is not None
        self._users.close()
        slot_I = np.arange(self._model.items)
        path = self._folder / "items.parquet"
        writer: pq.ParquetWriter | None = None
        at_once = VECTORS_AT_ONCE if self._extras.vectors else ITEMS_AT_ONCE
        for first in range(0, len(slot_I), at_once):
            slot_n = slot_I[first : first + at_once]
            genre_n, moods = attributes_of(slot_n, self._model, self._seed, first)
            columns = {
                "item_id": slot_n + 1,
                "title": titles(slot_n, self._model.clusters),
                "genre": _words("genre", genre_n),
                "moods": _word_lists("moods", moods),
            }
            for name, number_I in self._features.numbers.items():
                columns[name] = pa.array(number_I[slot_n], from_pandas=True)
            if self._extras.vectors:
                columns["text"] = self._vectors(first)
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema, **options(table.schema))
            writer.write_table(table)
        assert writer is not None
        writer.close()

    def _vectors(self, first: int) -> pa.Array:
        """Lists of numbers; null where missing."""
        vector_nW = self._features.vectors(first).astype(np.float32)
        return pa.FixedSizeListArray.from_arrays(
            vector_nW.reshape(-1), self._extras.vectors, mask=pa.array(~vector_nW.any(axis=1))
        )


def _words(name: str, row_n: np.ndarray) -> pa.StringArray:
    """Values as text; missing ones null."""
    return pa.array([None, *VOCABULARIES[name]]).take(pa.array(row_n))


def _word_lists(name: str, bags: Jagged) -> pa.ListArray:
    words = _words(name, bags.values)
    return pa.ListArray.from_arrays(bags.offsets.astype(np.int32), words)
