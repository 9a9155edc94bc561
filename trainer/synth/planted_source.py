"""The same planted data as a source that `prepare` reads: `synth --raw`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.jagged import Jagged
from trainer.synth.planted import PlantedModel
from trainer.synth.planted_parquet import ITEMS_AT_ONCE, attributes_of, options, write
from trainer.synth.planted_rows import PartRows
from trainer.synth.planted_tables import VOCABULARIES, titles, user_attributes


class RawWriter:
    """Writes the same data as a source: `interactions/*.parquet` in time order of each user,
    `items.parquet` and `users.parquet` with titles and attributes as text."""

    def __init__(self, folder: Path, model: PlantedModel, seed: int) -> None:
        self._folder, self._model, self._seed = folder, model, seed
        self._users: pq.ParquetWriter | None = None
        (folder / "interactions").mkdir()

    def write_part(self, number: int, part: PartRows, random: np.random.Generator) -> pa.Table:
        """Write a part's interactions; its users with their attributes."""
        liked_M = part.draws.liked_M
        # Some likes are a 4, most a 5; dislikes a 1 or a 2.
        rating_M = np.where(liked_M, 5, 2) - (random.random(len(liked_M)) < 0.3)
        table = pa.table(
            {
                "user_id": part.draws.user_M + part.first_user + 1,
                "item_id": part.draws.slot_M + 1,
                "rating": rating_M.astype(np.float32),
                "timestamp": part.timestamp_M,
            }
        )
        write(table, self._folder / f"interactions/part-{number:05d}.parquet")
        country_U, interests = user_attributes(part.draws.taste_UT, random)
        users = {
            "user_id": np.arange(len(country_U)) + part.first_user + 1,
            "country": _words("country", country_U),
            "interests": _word_lists("interests", interests),
        }
        return pa.table(users)

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
        for first in range(0, len(slot_I), ITEMS_AT_ONCE):
            slot_n = slot_I[first : first + ITEMS_AT_ONCE]
            genre_n, moods = attributes_of(slot_n, self._model, self._seed, first)
            columns = {
                "item_id": slot_n + 1,
                "title": titles(slot_n, self._model.clusters),
                "genre": _words("genre", genre_n),
                "moods": _word_lists("moods", moods),
            }
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema, **options(table.schema))
            writer.write_table(table)
        assert writer is not None
        writer.close()


def _words(name: str, row_n: np.ndarray) -> pa.StringArray:
    """Values as text; missing ones null."""
    return pa.array([None, *VOCABULARIES[name]]).take(pa.array(row_n))


def _word_lists(name: str, bags: Jagged) -> pa.ListArray:
    words = _words(name, bags.values)
    return pa.ListArray.from_arrays(bags.offsets.astype(np.int32), words)
