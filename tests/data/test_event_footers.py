"""What a stranger's events may hold, and their footers say: one line, wherever they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import event_paths, make_dataset, rewrite_events, with_column
from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.loader.loader import Loader
from trainer.retrieval.known import known_at, known_users
from trainer.retrieval.queries import read_queries


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """100 users of 20 events, row groups of 128 and up to a user's more, in 3 files."""
    return make_dataset(tmp_path_factory.mktemp("footers") / "data", users=100)


@pytest.fixture
def copy(base: Dataset, tmp_path: Path) -> Dataset:
    """A copy that a test may spoil."""
    source = Path(base.path)
    for file in source.rglob("*.parquet"):
        target = tmp_path / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return replace(base, path=str(tmp_path))


def second(dataset: Dataset) -> Path:
    """The file that is spoiled."""
    return Path(event_paths(dataset)[1])


def say(dataset: Dataset, text: str | None) -> None:
    """Write the second file again with another word on its row groups."""
    path = second(dataset)
    table = pq.ParquetFile(path)
    groups = [table.read_row_group(group) for group in range(table.num_row_groups)]
    with pq.ParquetWriter(path, groups[0].schema.remove_metadata()) as writer:
        for group in groups:
            writer.write_table(group.replace_schema_metadata(None))
        if text is not None:
            writer.add_key_value_metadata({"tandem": text})


def uses(dataset: Dataset) -> list[Callable[[], Any]]:
    """Training, evaluation, export, recommendation."""
    asked = dataset.splits["test"].queries
    return [
        lambda: list(Loader(dataset, local_batch_size=64).epoch(0)),
        lambda: list(read_queries(dataset, "test", np.arange(asked), 64)),
        lambda: list(known_users(dataset, 0, 100, 7)),
        lambda: known_at(dataset, range(100)),
    ]


def check(dataset: Dataset, message: str) -> None:
    for use in uses(dataset):
        with pytest.raises(Mistake, match=message) as told:
            use()
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "{", "null", "{}", "[]", "[[]]", '"x"', "[[1, 2], [3]]", "[" * 99_999),
        *("NaN", "[[1e999]]", "[[null]]", "[[{}]]", f"[[{10**30}]]", "9" * 9999),
    ],
)
def test_nonsense(copy: Dataset, text: str | None) -> None:
    say(copy, text)
    check(copy, r"part-00001.parquet does not say what its row groups hold .*again$")


@pytest.mark.parametrize("place", [*range(2, 12)])
@pytest.mark.parametrize("by", [-1000, 1, 1000, 2**62])
def test_other_counts(copy: Dataset, place: int, by: int) -> None:
    said = json.loads(pq.ParquetFile(second(copy)).metadata.metadata[b"tandem"])
    said[1][place] += by
    say(copy, json.dumps(said))
    told = (
        r"part-00001.parquet does not say what its row groups hold",
        r"the events' files of .* hold \d+ (events|liked|disliked|queries) of ",
    )
    if place in (2, 3) and by == 1:  # users, and queries of train: looked at by nobody
        return
    check(copy, f"({'|'.join(told)})")


def test_counts_that_add_up(copy: Dataset) -> None:
    """A train event told as one of the test: the sums of the file are right."""
    said = json.loads(pq.ParquetFile(second(copy)).metadata.metadata[b"tandem"])
    said[0][6] -= 1
    said[0][10] += 1
    said[1][6] += 1
    said[1][10] -= 1
    said[0][5] += 1
    said[1][5] -= 1
    say(copy, json.dumps(said))
    loads, asks = uses(copy)[:2]
    with pytest.raises(Mistake, match=r"row group 0 holds \d+ rows, its footer says \d+"):
        loads()
    with pytest.raises(Mistake, match=r"row group 0 holds \d+ users with .*, its footer says"):
        asks()


@pytest.mark.parametrize(
    ("group", "place", "value"),
    [(0, 0, 0), (1, 0, 36), (0, 1, 99), (1, 1, 2**62), (0, 0, 2**40), (1, 1, 0)],
)
def test_other_users(copy: Dataset, group: int, place: int, value: int) -> None:
    said = json.loads(pq.ParquetFile(second(copy)).metadata.metadata[b"tandem"])
    said[group][place] = value
    say(copy, json.dumps(said))
    check(
        copy, r"part-0000[12].parquet row group \d: (users do not ascend|its users are not those)"
    )


def test_users_that_do_not_ascend(copy: Dataset) -> None:
    def backwards(table: pa.Table) -> pa.Table:
        user = table["user"].to_pylist()
        user[1:-1] = user[1:-1][::-1]
        return with_column(table, "user", user)

    rewrite_events(second(copy), backwards)
    check(copy, r"part-00001.parquet row group \d: users do not ascend")


@pytest.mark.parametrize("column", ["user", "item", "time", "kind", "split"])
def test_nulls(copy: Dataset, column: str) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        values = [*table[column].to_pylist()[:-1], None]
        field = pa.field(column, table.schema.field(column).type)
        place = table.schema.get_field_index(column)
        return table.set_column(place, field, pa.array(values, field.type))

    rewrite_events(second(copy), spoil)
    check(copy, rf"part-00001.parquet row group \d column '{column}' has nulls")


@pytest.mark.parametrize("column", ["user", "item", "time", "kind", "split"])
@pytest.mark.parametrize("as_type", [None, pa.string(), pa.float64(), pa.uint32(), pa.bool_()])
def test_columns_of_other_types(copy: Dataset, column: str, as_type: pa.DataType | None) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        table = table.remove_column(place)
        values = [1] * len(table)
        if as_type is None:
            return table
        return table.append_column(column, pa.array(values).cast(as_type))

    rewrite_events(second(copy), spoil)
    check(copy, rf"part-00001.parquet(: column '{column}' is of| has no column '{column}')")
