"""dataset.json of anybody: entries of their types and ranges, names in the folder, columns."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.planted import Row, make, some_rows, write_csv
from tests.datasets import rewrite_events, with_column
from trainer.base.mistake import Mistake
from trainer.data.description import dataset_of
from trainer.data.schema import Dataset, FileRecord, combined_digest
from trainer.loader.loader import Loader
from trainer.retrieval.known import known_at, known_users
from trainer.retrieval.queries import read_queries

Path_ = tuple[Any, ...]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("described")
    items = folder / "items.csv"
    items.write_text(
        "item,title,genre,price\n"
        + "".join(f"{n},t{n},g{n % 3},{n * n}\n" for n in range(100, 190))
    )
    rows = [row._replace(rating=1 + row.item % 5) for row in some_rows(users=30, each=20, items=90)]
    return make(
        write_csv(folder / "rows.csv", rows), folder / "out", items=str(items), buckets=("price",)
    )


@pytest.fixture
def described(made: Dataset) -> dict[str, Any]:
    return json.loads(made.to_json())


@pytest.fixture
def spoiled(made: Dataset, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(made.path, tmp_path / "copy")
    return tmp_path / "copy"


def places(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every entry of a JSON document."""
    yield path
    below = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, each in below:
        yield from places(each, (*path, key))


def with_entry(document: Any, path: Path_, value: Any) -> Any:
    changed = copy.deepcopy(document)
    if not path:
        return value
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


OTHER_TYPES = (None, True, -1.5, "1; DROP TABLE raw;--", [None], {"a": 1}, 10**30)
SPOKEN = {
    ("split_rule", "rule"),
    ("source", "format"),
    ("source", "timestamp_unit"),
    ("window_rule",),
}
"""Any text will do: they are shown, or compared with what is known."""


def test_every_entry_has_its_type(described: dict[str, Any]) -> None:
    """A value of another type is told with entry and value, or means the same as the right one."""
    refused = 0
    for path in places(described):
        for value in OTHER_TYPES:
            changed = json.dumps(with_entry(described, path, value))
            try:
                dataset_of("D", changed)
            except Mistake as told:
                refused += 1
                assert "\n" not in str(told) and str(told).startswith("D")
            else:
                spoken = path in SPOKEN or path[:2] == SOURCE_COLUMNS or path[-1] == "name"
                named = isinstance(value, str) and spoken
                optional = value is None and (path[0] in OPTIONAL or path[-1] in (*TIMES, "scale"))
                number = isinstance(value, float | int) and {"boundaries", "thresholds"} & {*path}
                free = path in FREE or path[0] in ("dropped", "notes")
                assert named or optional or number or free, (path, value)
    assert refused > 500


OPTIONAL = ("source", "split_rule", "parent_digest", "window_rule")
TIMES = ("first_time", "last_time")
SOURCE_COLUMNS = ("source", "columns")
FREE = {
    *(("source", name) for name in ("duckdb", "title_column", "in_order")),
    ("has_timestamps",),
    ("has_weights",),
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("num_items",), "90", r"num_items='90': must be a whole number"),
        (("num_items",), None, r"num_items=None: must be a whole number"),
        (("num_users",), 0, r"num_users=0: must be .* at least 1"),
        (("history_length",), "20", r"history_length='20'"),
        (("history_length",), 10**6, r"history_length=1000000: must be .* at most 10,000"),
        (
            ("split_rule", "seed"),
            "0) TO 'x'; --",
            r"split_rule.seed=\"0\) TO 'x'; --\": must be a whole",
        ),
        (("split_rule", "test_share"), 2.0, r"split_rule.test_share=2.0: must be .* below 1"),
        (("source", "rows"), "9", r"source.rows='9'"),
        (("source", "thresholds", "positive"), "4", r"source.thresholds.positive='4'"),
        (("source", "duplicates"), "both", r"source.duplicates='both': must be one of first, last"),
        (
            ("attributes", "item", 1, "boundaries", 0),
            "0)",
            r"item_attributes\[1\].boundaries\[0\]='0\)'",
        ),
        (("attributes", "item", 0, "name"), "Count", r"item attribute 'count' has the name of"),
        (("attributes", "item", 0, "name"), "PRICE", r"item attribute 'price' has the name of"),
        (("attributes", "item", 0, "kind"), "dense", r"item_attributes\[0\].kind='dense'"),
        (("attributes", "item", 1, "num_values"), 3, r"15 boundaries, which make not 3 values"),
        (("attributes",), [], r"attributes is \[\], no object"),
        (("windows",), [], r"windows=\[\]: must be .* at least 1"),
        (("windows", 0, "files"), [], r"windows have no files"),
        (("windows", 0, "events"), 7, r"splits hold other rows than the 7 events of its windows"),
        (("kinds",), [], r"kinds=\[\]: must be .* at least 1"),
        (("kinds", 1, "name"), "liked", r"kinds have one name twice, or are more than 100"),
        (("kinds", 1, "role"), "loved", r"kinds\[1\].role='loved': must be one of positive"),
        (("splits", "train", "rows"), 7, r"splits.train has 7 rows, .* do not add up"),
        (("windows", 0, "files"), ["x.parquet"], r"'x.parquet' is not among its files"),
        (("windows", 0, "files"), ["items.parquet"] * 2, r"windows name a file twice"),
        (("splits", "more"), {}, r"splits.more"),
        (("digest",), "../../x", r"digest is '../../x', not that of its files"),
        (("parent_digest",), "../x", r"parent_digest is '../x', no SHA-256"),
        (("files", "items.parquet", "sha256"), "x", r"items.parquet' has 'x', no SHA-256"),
        (("more",), 1, r"unknown field more"),
        (("schema_version",), True, r"schema version True, this Tandem reads 2"),
    ],
)
def test_what_is_told(described: dict[str, Any], path: Path_, value: Any, message: str) -> None:
    changed = json.dumps(with_entry(described, path, value))
    with pytest.raises(Mistake, match=message) as told:
        dataset_of("D", changed)
    remedy = "make it anew with `tandem prepare SOURCE D`" if "schema" in message else "again"
    assert str(told.value).endswith(remedy) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "/etc/passwd.parquet",
            "../x.parquet",
            "a/../../x.parquet",
            "a//x.parquet",
            "./x.parquet",
        ),
        *("x", "", "a\\x.parquet", "a\nb.parquet", "s3://bucket/x.parquet", "a/.parquet/.."),
    ],
)
def test_names_stay_in_the_folder(described: dict[str, Any], name: str) -> None:
    described["files"][name] = described["files"]["items.parquet"]
    described["windows"][0]["files"].append(name)
    records = {key: FileRecord(**each) for key, each in described["files"].items()}
    described["digest"] = combined_digest(records)
    with pytest.raises(Mistake, match=r"files has .*, which is no name of a file"):
        dataset_of("D", json.dumps(described))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[1]", '"x"', "[" * 9999, "NaN", "9" * 9999, b"\xff\xfe", b"\x00" * 9),
        *(
            '{"schema_version": 1e999}',
            '{"schema_version": 1, "num_items": NaN}',
            '{"schema_version": 1}',
        ),
    ],
)
def test_what_is_no_description(text: str | bytes) -> None:
    with pytest.raises(Mistake, match=r"^D/dataset.json cannot be read|^D has schema version"):
        dataset_of("D", text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 99_999, "nested too deeply"),
        ("9" * 9999, "a number of thousands of digits"),
        (b'{"a": "\xff"}', "no utf-8 text at byte 7"),
        ("{", "at line 1, column 2"),
    ],
)
def test_what_hinders_is_said_without_pythons_own_words(text: str | bytes, said: str) -> None:
    with pytest.raises(Mistake, match=said) as told:
        dataset_of("D", text)
    assert "recursion" not in str(told.value) and "sys." not in str(told.value)


def test_what_is_no_file(spoiled: Path) -> None:
    path = spoiled / "dataset.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(Mistake, match="is no prepared dataset"):
        Dataset.load(spoiled)


def rewritten(folder: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> Dataset:
    """The dataset after a change of one of its tables, recorded as if it were right."""
    if name.startswith("events/"):
        rewrite_events(folder / name, change)
    else:
        pq.write_table(change(pq.read_table(folder / name)), folder / name)
    described = json.loads((folder / "dataset.json").read_text())
    described["files"][name]["bytes"] = (folder / name).stat().st_size
    records = {key: FileRecord(**each) for key, each in described["files"].items()}
    described["digest"] = combined_digest(records)
    (folder / "dataset.json").write_text(json.dumps(described))
    return Dataset.load(folder)


def as_text(column: str) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = [str(each) for each in table[column].to_pylist()]
        return table.set_column(table.schema.get_field_index(column), column, pa.array(values))

    return change


def without(column: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([column])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("items.parquet", without("item"), r"items.parquet has no column 'item'"),
        ("items.parquet", without("genre"), r"items.parquet has no column 'genre'"),
        ("items.parquet", as_text("count"), r"column 'count' is of type string, not integers"),
        ("items.parquet", lambda table: table.slice(1), r"has 89 rows, dataset.json says 90"),
        ("users.parquet", without("raw_id"), r"users.parquet has no column 'raw_id'"),
        ("users.parquet", lambda table: table.slice(2), r"has 28 rows, dataset.json says 30"),
        ("attributes.parquet", as_text("row"), r"column 'row' is of type string"),
    ],
)
def test_tables(
    spoiled: Path, name: str, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with pytest.raises(Mistake, match=message) as told:
        rewritten(spoiled, name, change)
    assert name in str(told.value) and "\n" not in str(told.value)


PART = "events/00000/part-00000.parquet"


def extended(spoiled: Path) -> None:
    """`--extend`, which reads the events as DuckDB does."""
    new = write_csv(spoiled / "new.csv", [row._replace(rating=5) for row in some_rows()])
    make(new, spoiled.with_name("extended"), extend=str(spoiled))


@pytest.mark.parametrize("column", ["user", "item", "time", "kind", "split"])
@pytest.mark.parametrize("change", [without, as_text])
def test_events(
    spoiled: Path, column: str, change: Callable[[str], Callable[[pa.Table], pa.Table]]
) -> None:
    """Their files are looked at when they are opened: for training, for extending, for users."""
    dataset = rewritten(spoiled, PART, change(column))
    message = rf"part-00000.parquet(: column '{column}' is| has no column '{column}')"
    for use in (
        lambda: Loader(dataset, local_batch_size=4),
        lambda: list(known_users(dataset, 0, 30, block_size=8)),
        lambda: known_at(dataset, [3]),
        lambda: list(read_queries(dataset, "test", np.arange(3), 8)),
        lambda: extended(spoiled),
    ):
        with pytest.raises(Mistake, match=message) as told:
            use()
        assert "\n" not in str(told.value)


def test_events_that_are_missing(spoiled: Path) -> None:
    dataset = rewritten(spoiled, PART, lambda table: table.slice(5))
    with pytest.raises(Mistake, match=r"part-00000.parquet does not say what its row groups hold"):
        Loader(dataset, local_batch_size=4)


def test_splits_that_are_others(spoiled: Path) -> None:
    """Their sum is right: an event of the test is told as one of train."""
    path = spoiled / "dataset.json"
    described = json.loads(path.read_text())
    for split, by in (("train", 1), ("test", -1)):
        for name in ("rows", "positives"):
            described["splits"][split][name] += by
    path.write_text(json.dumps(described))
    with pytest.raises(Mistake, match=r"events' files of .* hold \d+ events of train, dataset.jso"):
        Loader(Dataset.load(spoiled), local_batch_size=4)


@pytest.mark.parametrize(
    ("column", "wrong"),
    [("user", 30), ("user", -1), ("item", 2**30), ("item", -1), ("kind", 2), ("split", 3)],
)
def test_ids_out_of_range(spoiled: Path, column: str, wrong: int) -> None:
    def change(table: pa.Table) -> pa.Table:
        return with_column(table, column, [*table[column].to_pylist()[:-1], wrong])

    dataset = rewritten(spoiled, PART, change)
    most = {"user": 29, "item": 89, "kind": 1, "split": 2}[column]
    message = rf"row group \d column '{column}' holds id {wrong}, outside 0\.\.{most}"
    for use in (
        lambda: list(Loader(dataset, local_batch_size=4).epoch(0)),
        lambda: list(known_users(dataset, 0, 30, block_size=8)),
        lambda: list(read_queries(dataset, "test", np.arange(3), 8)),
        lambda: extended(spoiled),
    ):
        with pytest.raises(Mistake, match=message):
            use()


def with_null(column: str) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        field = pa.field(column, table.schema.field(place).type)
        values = [*table[column].to_pylist()[:-1], None]
        return table.set_column(place, field, pa.array(values, field.type))

    return change


@pytest.mark.parametrize("column", ["user", "item", "time", "kind", "split"])
def test_events_without_a_value_are_not_taken_over(spoiled: Path, column: str) -> None:
    rewritten(spoiled, PART, with_null(column))
    with pytest.raises(Mistake, match=rf"part-00000.parquet .*column '{column}' has nulls"):
        extended(spoiled)


@pytest.mark.parametrize("column", ["user", "item", "kind", "split"])
def test_events_without_times_are_read_by_duckdb_and_checked_alike(
    column: str, tmp_path: Path
) -> None:
    """A user without a number was left out in silence, an item without one was a fault."""
    rows = [Row(n % 12, 100 + n % 7, 1 + 4 * (n % 3 > 0)) for n in range(84)]
    source = write_csv(tmp_path / "rows.csv", rows)
    for number, (change, message) in enumerate(
        (
            (with_null(column), rf"part-00000.parquet.*: column '{column}' has nulls"),
            (
                lambda t: with_column(t, column, [*t[column].to_pylist()[:-1], 99]),
                rf"part-00000.parquet.*: column '{column}' holds 99, outside 0\.\.",
            ),
        )
    ):
        old = tmp_path / f"old{number}"
        make(source, old)
        rewritten(old, PART, change)
        with pytest.raises(Mistake, match=message) as told:
            make(source, tmp_path / f"new{number}", extend=str(old))
        assert "\n" not in str(told.value)


def test_a_strangers_dataset_runs_no_sql(spoiled: Path, tmp_path: Path) -> None:
    """Demonstrated once: a seed that ended a statement and wrote a file."""
    written = tmp_path / "written"
    path = spoiled / "dataset.json"
    described = json.loads(path.read_text())
    described["split_rule"]["seed"] = (
        f"0), item) TO '{written}'; COPY (SELECT 1) TO '{written}'; --"
    )
    path.write_text(json.dumps(described))
    new = write_csv(tmp_path / "new.csv", some_rows())
    with pytest.raises(Mistake, match=r"split_rule.seed=.*must be a whole number"):
        make(new, tmp_path / "out", extend=str(spoiled))
    assert not written.exists() and not (tmp_path / "out").exists()
