"""Words of vocabularies that only forgotten users had: they leave, their rows stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.data.feature_types import Attribute
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset

NO_WORD = ""
"""In place of a word: no value of a source is empty, so nobody gets its row again."""
EVENTS_AT_ONCE = 1 << 20


def forget_values(dataset: Dataset, users: np.ndarray, folder: Path) -> bool:
    """Write attributes.parquet to a folder without words of these users alone; False: none are."""
    gone = {(side, name): rows for side, name, rows in _rows_of_nobody(dataset, users) if len(rows)}
    if not gone:
        return False
    with open_parquet(dataset.file("attributes.parquet")) as file:
        table = file.read()
    words = [
        NO_WORD if row in gone.get((side, name), ()) else value
        for side, name, row, value in zip(
            *(table.column(name).to_pylist() for name in ("side", "name", "row", "value")),
            strict=True,
        )
    ]
    place = table.schema.get_field_index("value")
    pq.write_table(
        table.set_column(place, "value", pa.array(words, pa.string())),
        folder / "attributes.parquet",
        compression="zstd",
        write_page_checksum=True,
    )
    return True


def _rows_of_nobody(dataset: Dataset, users: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """By side and attribute, the rows that these users had and nobody else has."""
    for each in filter(_has_words, dataset.user_attributes):
        with open_parquet(dataset.file("users.parquet")) as file:
            column = file.read(columns=[each.name]).column(0).combine_chunks()
        user = np.arange(len(column))
        if each.kind == "multi":
            user = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
        values, theirs = column.to_numpy(), np.isin(user, users)
        yield "user", each.name, _only(values[theirs], [values[~theirs]])
    for each in filter(_has_words, dataset.context_attributes):
        had: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        left: list[np.ndarray] = []
        for path in map(dataset.file, dataset.event_names):
            with open_parquet(path) as file:
                names = ["user", f"context.{each.name}"]
                for batch in file.iter_batches(EVENTS_AT_ONCE, columns=names):
                    user, value = (column.to_numpy() for column in batch.columns)
                    theirs = np.isin(user, users)
                    had.append(np.unique(value[theirs]))
                    left.append(np.unique(value[~theirs]))
        yield "context", each.name, _only(np.concatenate(had), left)


def _has_words(attribute: Attribute) -> bool:
    return attribute.num_values > 0 and not attribute.boundaries


def _only(had: np.ndarray, left: list[np.ndarray]) -> np.ndarray:
    """Rows among `had` that are in none of the others, but for row 0."""
    others = np.concatenate([np.zeros(1, dtype=np.int64), *left])
    return np.setdiff1d(had.astype(np.int64), others)
