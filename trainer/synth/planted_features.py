"""Vectors, numbers and context of planted data as a prepared dataset describes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import duckdb
import numpy as np

from trainer.data.feature_types import VECTORS, Attribute, VectorFile
from trainer.data.schema import EventWindow
from trainer.prepare.features.scales import scale_of
from trainer.sources import sql
from trainer.synth.planted import PlantedModel
from trainer.synth.planted_extras import DEVICES, VECTORS_AT_ONCE, Extras, ItemFeatures

ITEM_NUMBERS, USER_NUMBERS = ("price", "tempo"), ("age",)


def write_item_vectors(
    folder: Path, model: PlantedModel, extras: Extras, features: ItemFeatures
) -> tuple[Attribute, ...]:
    """Write the items' vectors in the order of their rows; the attribute, where there are any."""
    if not extras.vectors:
        return ()
    name = f"{VECTORS}/item.text-00000.f16"
    (folder / VECTORS).mkdir()
    shape = (model.items, extras.vectors)
    out = np.memmap(folder / name, dtype=np.float16, mode="w+", shape=shape)
    for first in range(0, model.items, VECTORS_AT_ONCE):
        vector_nW = features.vectors(first)
        out[model.row_of_slot_I[first : first + len(vector_nW)]] = vector_nW
    out.flush()
    vectors = (VectorFile(name, model.items),)
    return (Attribute("text", "vector", width=extras.vectors, vectors=vectors),)


def number_attributes(folder: Path, side: str, names: Sequence[str]) -> tuple[Attribute, ...]:
    """Attributes of columns of items.parquet or users.parquet, with their scales."""
    return _numbers([folder / f"{side}s.parquet"], "true", {name: name for name in names})


def context_attributes(
    folder: Path, windows: Sequence[EventWindow]
) -> tuple[tuple[Attribute, ...], list[int]]:
    """Attributes of the events' context; events of each device."""
    files = [folder / file for window in windows for file in window.files]
    own = "true" if len(windows) == 1 else "coalesce(carried, 0) = 0"
    numbers = _numbers(files, own, {"minutes": "context.minutes"})
    with closing(duckdb.connect()) as connection:
        relation = sql.parquet(connection, files, by_name=True)
        counted = connection.execute(
            f'SELECT "context.device", count(*) FROM {relation} WHERE {own} GROUP BY ALL'
        ).fetchall()
    counts = dict(counted)
    attribute = Attribute("device", "single", len(DEVICES) + 1)
    return (attribute, *numbers), [counts.get(row, 0) for row in range(len(DEVICES) + 1)]


def _numbers(files: Sequence[Path], own: str, columns: dict[str, str]) -> tuple[Attribute, ...]:
    """own: condition of the rows that count."""
    found = []
    with closing(duckdb.connect(config={"threads": 1})) as connection:  # sums in one order
        relation = f"(SELECT * FROM {sql.parquet(connection, files, by_name=True)} WHERE {own})"
        for name, column in columns.items():
            scale = scale_of(connection, relation, sql.name(column))
            assert scale is not None, name
            found.append(Attribute(name, "number", scale=scale))
    return tuple(found)
