"""A bundle's tables of what the dataset says: ids, attributes, vocabularies, features of users."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.base.split_names import CountColumn
from trainer.bundle.choices import ATTRIBUTES
from trainer.bundle.flat_arrays import GrowingArray, GrowingLists
from trainer.bundle.names_file import write_names
from trainer.bundle.query_program import FEATURES
from trainer.data.feature_types import Attribute
from trainer.data.features import FeatureStore
from trainer.data.jagged import Jagged
from trainer.data.parquet import filesystem_of, open_parquet
from trainer.data.schema import Dataset
from trainer.files.writing import written

ROWS_AT_ONCE = 1 << 16
ROW_GROUP_ROWS = 1 << 17
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?")


def write_ids(dataset: Dataset, folder: Path, side: Literal["item", "user"]) -> None:
    """ids.arrow and order.npy of one side."""
    with open_parquet(dataset.file(f"{side}s.parquet")) as file:
        names = ["raw_id", "title"] if side == "item" else ["raw_id"]
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        write_names(folder, file.iter_batches(ROWS_AT_ONCE, columns=names), schema)


def write_counts(
    dataset: Dataset, folder: Path, side: Literal["item", "user"], column: CountColumn
) -> None:
    """Training interactions of items or users."""
    with (
        open_parquet(dataset.file(f"{side}s.parquet")) as file,
        GrowingArray(folder / "counts.npy", np.int64) as counts,
    ):
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
            counts.append(batch.column(0).to_numpy())


def write_vocabularies(dataset: Dataset, path: Path) -> None:
    """The dataset's attributes.parquet as it is."""
    filesystem, name = filesystem_of(dataset.file("attributes.parquet"))
    with filesystem.open_input_stream(name) as source, written(path) as target:
        while block := source.read(4 << 20):
            target.write(block)


def write_attributes(dataset: Dataset, folder: Path, count: CountColumn) -> None:
    """items/attributes.parquet: item (raw id), title, count, and each attribute as in the source.

    Categories are text, or numbers where all their values are; several are a list. A missing value
    is NULL. Vectors are left out.
    """
    decoders = [_Decoder(dataset, each) for each in dataset.item_attributes
                if each.kind != "vector"]  # fmt: skip
    columns = ["raw_id", "title", count, *(each.attribute.name for each in decoders)]
    with ExitStack() as stack:
        file = stack.enter_context(open_parquet(dataset.file("items.parquet")))
        stream = stack.enter_context(written(folder / ATTRIBUTES))
        writer: pq.ParquetWriter | None = None
        for batch in file.iter_batches(ROW_GROUP_ROWS, columns=columns):
            table = pa.table(
                {
                    "item": batch.column("raw_id"),
                    "title": batch.column("title"),
                    "count": batch.column(count),
                    **{d.attribute.name: d.decoded(batch) for d in decoders},
                }
            )
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(stream, table.schema))
            writer.write_table(table)


class _Decoder:
    """An attribute's column, back to what the source said."""

    def __init__(self, dataset: Dataset, attribute: Attribute) -> None:
        self.attribute = attribute
        self.values = None
        if attribute.kind in ("single", "multi"):
            self.values = _typed(_vocabulary(dataset, "item", attribute))

    def decoded(self, batch: pa.RecordBatch) -> pa.Array:
        column = batch.column(self.attribute.name)
        if self.values is None:
            number = pc.if_else(pc.is_finite(column), column, None)
            if self.attribute.of == "time":
                micros = pc.round(pc.multiply(number.cast(pa.float64()), 1e6))
                return micros.cast(pa.int64()).cast(pa.timestamp("us"))
            return number
        if self.attribute.kind == "single":
            return self.values.take(column)
        flat = self.values.take(column.flatten())
        return pa.ListArray.from_arrays(_from_zero(column), flat)


def _from_zero(lists: pa.ListArray) -> pa.Array:
    return pc.subtract(lists.offsets, lists.offsets[0]).cast(pa.int32())


def _vocabulary(dataset: Dataset, side: str, attribute: Attribute) -> list[str | None]:
    """Values by row; row 0, missing, is None."""
    filesystem, path = filesystem_of(dataset.file("attributes.parquet"))
    wanted = (pc.field("side") == side) & (pc.field("name") == attribute.name)
    table = pq.read_table(
        path, filesystem=filesystem, partitioning=None, columns=["row", "value"], filters=wanted
    )
    values: list[str | None] = [None] * max(attribute.num_values, 1)
    for row, value in zip(*(table.column(n).to_pylist() for n in ("row", "value")), strict=True):
        if 0 < row < len(values):
            values[row] = value
    return values


def _typed(values: Sequence[str | None]) -> pa.Array:
    """Numbers where all values are written as numbers are, else text."""
    given = [value for value in values if value is not None]
    if given and all(WHOLE.fullmatch(value) for value in given):
        return pa.array([None if value is None else int(value) for value in values], pa.int64())
    if given and all(DECIMAL.fullmatch(value) for value in given):
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array(values, pa.string())


def write_features(dataset: Dataset, folder: Path, store: FeatureStore, reads: set[str]) -> None:
    """What the query tower reads of users, by the attribute's place among them."""
    for place, attribute in enumerate(dataset.user_attributes):
        key = f"user.{attribute.name}"
        if key not in reads:
            continue
        blocks = _blocks(store, key, attribute, dataset.num_users)
        if attribute.kind == "multi":
            with GrowingLists(folder / FEATURES, str(place)) as lists:
                for block in blocks:
                    assert isinstance(block, Jagged)
                    lists.append(block.values, np.diff(block.offsets))
            continue
        dtype: Any = np.float32 if attribute.is_dense else np.int32
        width = attribute.width or None
        with GrowingArray(folder / FEATURES / f"{place}.npy", dtype, width) as array:
            for block in blocks:
                assert isinstance(block, np.ndarray)
                array.append(block if width else block.reshape(len(block)))


def _blocks(
    store: FeatureStore, key: str, attribute: Attribute, rows: int
) -> Iterator[np.ndarray | Jagged]:
    for first in range(0, rows, ROWS_AT_ONCE):
        ids = np.arange(first, min(first + ROWS_AT_ONCE, rows))
        yield store.dense(key, ids) if attribute.is_dense else store.column(key, ids)
