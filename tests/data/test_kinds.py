"""Columns of items by their types: categories, numbers, times, and what no attribute can hold."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.planted import Row, make, some_rows, table, write_csv
from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.data.vectors import Vectors
from trainer.sources import kinds

ITEMS = 200
IDS = range(ITEMS)
DAY = dt.date(2000, 1, 1)

TYPED: dict[str, tuple[Any, tuple[str, int, str] | str]] = {
    "date": (pa.array(IDS, pa.date32()), ("number", 0, "time")),
    "timestamp": (pa.array([n * 10**12 for n in IDS], pa.timestamp("us")), ("number", 0, "time")),
    "with_zone": (
        pa.array([n * 10**15 for n in IDS], pa.timestamp("ns", "UTC")),
        ("number", 0, "time"),
    ),
    "sentinel": (
        pa.array([-(2**63), *(n * 10**12 for n in IDS[1:])], pa.timestamp("us")),
        ("number", 0, "time"),
    ),
    "time_of_day": (pa.array([60 * n for n in IDS], pa.time32("s")), ("number", 0, "time")),
    "few_dates": (pa.array([n % 3 for n in IDS], pa.date32()), ("single", 4, "")),
    "few_floats": ([math.nan if n % 2 else 0.5 * (n % 3) for n in IDS], ("single", 4, "")),
    "half": (pa.array([float(n) for n in IDS], pa.float16()), ("number", 0, "number")),
    "price": (
        pa.array([decimal.Decimal(n) / 4 for n in IDS], pa.decimal128(10, 2)),
        ("number", 0, "number"),
    ),
    "infinite": ([math.inf if n % 2 else float(n) for n in IDS], ("number", 0, "number")),
    "flag": ([n % 2 == 0 for n in IDS], ("single", 3, "")),
    "code": ([str(1000 + n) for n in IDS], ("single", 201, "")),
    "category": (pa.array([f"{n % 90}" for n in IDS]).dictionary_encode(), ("single", 91, "")),
    "uuid": ([str(uuid.UUID(int=n)) for n in IDS], ("single", 201, "")),
    "utf8": (pa.array([b"Caf\xc3\xa9 %d" % (n % 4) for n in IDS], pa.binary()), ("single", 5, "")),
    "words": ([["a", f"b{n % 5}"] for n in IDS], ("multi", 7, "")),
    "pair": (pa.array([[n % 3, n % 5] for n in IDS], pa.list_(pa.int32(), 2)), ("multi", 6, "")),
    "days": ([[DAY + dt.timedelta(n % 9)] for n in IDS], ("multi", 10, "")),
    "vector": ([[0.5 * n, 1.5] for n in IDS], ("vector", 0, "")),
    "fixed": (pa.array([[0.5 * n] for n in IDS], pa.list_(pa.float32(), 1)), ("vector", 0, "")),
    "decimals": (
        pa.array([[decimal.Decimal(n) / 4] for n in IDS], pa.list_(pa.decimal128(9, 2))),
        ("vector", 0, ""),
    ),
    "as_text": ([f"[{n + 0.5}, {n + 0.25}]" for n in IDS], ("vector", 0, "")),
    "piped": ([f"{n + 0.5}|{n + 0.25}" for n in IDS], ("vector", 0, "")),
    "struct": ([{"a": n} for n in IDS], "is of type STRUCT(a BIGINT), which no attribute can hold"),
    "map": (
        pa.array([[("a", n)] for n in IDS], pa.map_(pa.string(), pa.int64())),
        "is of type MAP(VARCHAR, BIGINT), which no attribute can hold",
    ),
    "structs": ([[{"a": n}] for n in IDS], "is a list of STRUCT(a BIGINT), which no attribute"),
    "nested": ([[[n]] for n in IDS], "is a list of BIGINT[], which no attribute can hold"),
    "bytes": ([bytes([n, 255]) for n in IDS], "holds bytes that are not UTF-8"),
    "nan": ([math.nan] * ITEMS, "holds no value"),
    "blank": ([" "] * ITEMS, "holds no value"),
    "null": (pa.array([None] * ITEMS, pa.string()), "holds no value"),
    "empty": (pa.array([[] for _ in IDS], pa.list_(pa.string())), "holds no value"),
}


def items_file(path: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table({"item": [100 + n for n in IDS], **columns}), path)
    return str(path)


def attributes_of(dataset: Dataset) -> dict[str, tuple[str, int, str]]:
    return {
        each.name: (each.kind, each.num_values, each.of if each.boundaries or each.scale else "")
        for each in dataset.item_attributes
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("kinds") / "rows.csv", some_rows())


@pytest.fixture(scope="module")
def typed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("typed")
    items = items_file(folder / "i.parquet", {name: values for name, (values, _) in TYPED.items()})
    return make(source, folder / "out", items=items)


@pytest.mark.parametrize("name", TYPED)
def test_types(typed: Dataset, name: str) -> None:
    expected = TYPED[name][1]
    if isinstance(expected, str):
        assert typed.source["attributes_left_out"]["item"][name].startswith(expected)
        assert name not in attributes_of(typed)
    else:
        assert attributes_of(typed)[name] == expected


def test_values(typed: Dataset) -> None:
    """Times are what they are, in seconds; bytes are the text that they are; nothing is hidden."""
    items = sorted(table(typed, "items"), key=lambda row: row["raw_id"])
    for name, seconds in (("date", 86_400), ("timestamp", 10**6), ("with_zone", 10**6)):
        assert [row[name] for row in items] == pytest.approx([n * seconds for n in IDS], rel=1e-6)
    assert [row["time_of_day"] for row in items] == [60 * n for n in IDS]
    assert math.isnan(items[0]["sentinel"])  # no moment of any year
    assert [math.isnan(row["infinite"]) for row in items] == [n % 2 == 1 for n in IDS]
    words = {(row["name"], row["row"]): row["value"] for row in table(typed, "attributes")}
    assert words["utf8", items[3]["utf8"]] == "Café 3"
    for each in typed.item_attributes:
        if not each.is_dense:
            assert any(row[each.name] for row in items)


def test_buckets_on_request(source: Path, tmp_path: Path) -> None:
    names = ("date", "timestamp", "with_zone", "time_of_day")
    columns = {name: TYPED[name][0] for name in names}
    items = items_file(tmp_path / "i.parquet", columns)
    dataset = make(source, tmp_path / "out", items=items, buckets=names)
    rows = sorted(table(dataset, "items"), key=lambda row: row["raw_id"])
    for name in names:
        assert attributes_of(dataset)[name] == ("single", 17, "time")
        buckets = [row[name] for row in rows]
        assert buckets == sorted(buckets) and set(buckets) == set(range(1, 17))
    words = {(row["name"], row["row"]): row["value"] for row in table(dataset, "attributes")}
    assert words["date", 1] == "below 1970-01-13"


@pytest.mark.parametrize("name", ["struct", "map", "bytes", "nan"])
def test_what_cannot_be_is_refused_by_name(source: Path, tmp_path: Path, name: str) -> None:
    items = items_file(tmp_path / "i.parquet", {name: TYPED[name][0]})
    for arguments in ({"item_attributes": (name,)}, {"category": (name,)}):
        with pytest.raises(Mistake, match=rf"i.parquet: column '{name}' .*: leave it out"):
            make(source, tmp_path / "out", items=items, **arguments)


def test_text_of_csv(source: Path, tmp_path: Path) -> None:
    """There types say nothing: numbers, dates, codes with zeros, and categories on request."""
    lines = ["item,number,released,zip,words,year,runtime"]
    for n in IDS:
        day = DAY + dt.timedelta(days=9 * n)
        lines.append(f"{100 + n},{n * n},{day},{n:05d},a|b{n % 3},{1900 + n},00:{n % 60:02d}:00")
    items = tmp_path / "items.csv"
    items.write_text("\n".join(lines) + "\n")
    dataset = make(source, tmp_path / "out", items=str(items), category=("year",))
    assert attributes_of(dataset) == {
        "number": ("number", 0, "number"),
        "released": ("number", 0, "time"),
        "zip": ("single", 201, ""),
        "words": ("multi", 5, ""),
        "year": ("single", 201, ""),
        "runtime": ("single", 61, ""),
    }
    with pytest.raises(Mistake, match=r"column yaer is to be a category, .* Did you mean year\?"):
        make(source, tmp_path / "no", items=str(items), category=("yaer",))
    with pytest.raises(Mistake, match=r"column year is to be a category, .* Give --items"):
        make(source, tmp_path / "no", category=("year",))


def test_recbole_says_the_kind(tmp_path: Path) -> None:
    (tmp_path / "t.inter").write_text(
        "user_id:token\titem_id:token\n" + "".join(f"{n % 6}\t{n % 9}\n" for n in range(54))
    )
    (tmp_path / "t.item").write_text(
        "item_id:token\tcode:token\tprice:float\tvec:float_seq\ttags:token_seq\n"
        + "".join(f"{n}\t{n}\t{n % 2}\t0.{n} 0.5\ta b{n % 2}\n" for n in range(9))
    )
    dataset = make(tmp_path, tmp_path / "out")
    assert attributes_of(dataset) == {
        "code": ("single", 10, ""),
        "price": ("number", 0, "number"),
        "vec": ("vector", 0, ""),
        "tags": ("multi", 4, ""),
    }
    (vec,) = (each for each in dataset.item_attributes if each.name == "vec")
    rows = pq.read_table(dataset.file("items.parquet")).to_pylist()
    taken = Vectors(dataset, vec).take(np.arange(9))
    assert taken == pytest.approx(np.array([[row["raw_id"] / 10, 0.5] for row in rows]), rel=1e-3)


def test_words_of_many_tags_are_no_codes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is nearly unique is told of values, not of the texts and lists that hold them."""
    monkeypatch.setattr(kinds, "NEARLY_UNIQUE", 50)
    columns = {
        "tags": [f"t{n % 9}|u{n}" if n < 40 else f"t{n % 9}|v{n // 40}" for n in IDS],
        "own_tags": [[f"x{n}", f"y{n}"] for n in IDS],
        "own_text": [f"z{n}" for n in IDS],
        "own_numbers": [[n, -n] for n in IDS],
    }
    items = items_file(tmp_path / "i.parquet", columns)
    dataset = make(source, tmp_path / "out", items=items)
    assert set(attributes_of(dataset)) == {"tags"}
    asked = make(source, tmp_path / "asked", items=items, item_attributes=("own_text",))
    assert attributes_of(asked)["own_text"] == ("single", 201, "")


NAMES = [
    *("Item", "COUNT", "Raw_ID", "raw", "RAW_ID_", "rowid", "Count_With_Validation", "TITLE_"),
    *("row", "value", "side", "user", "c0", "c1", "old", "given", "position", "part", "select"),
    *("a b", 'q"', "q'", ";--", "\n", "x.y", "$1", "?", "{a}", "é"),
]


def test_names_of_any_kind(source: Path, tmp_path: Path) -> None:
    """Names of our own columns, of DuckDB's and of nobody's; the dataset is read and extended."""
    columns = {name: [f"g{n % (k + 2)}" for n in IDS] for k, name in enumerate(NAMES)}
    items = items_file(tmp_path / "i.parquet", columns)
    dataset = make(source, tmp_path / "out", items=items)
    found = {each.name: each.num_values for each in dataset.item_attributes}
    # DuckDB has one RAW and no second: names that differ by case alone get a number.
    assert list(found.values()) == [k + 3 for k in range(len(NAMES)) if NAMES[k].strip()]
    assert len({each.lower() for each in found}) == len(found)
    new = write_csv(tmp_path / "new.csv", [Row(9, 100 + n, None, 99_000 + n) for n in range(9)])
    extended = make(new, tmp_path / "more", extend=str(tmp_path / "out"), items=items)
    assert extended.item_attributes == dataset.item_attributes
    was = {row["raw_id"]: row for row in table(dataset, "items")}
    for row in table(extended, "items"):
        assert all(row[name] == was[row["raw_id"]][name] for name in found)


def test_one_type_of_ids_in_all_files(source: Path, tmp_path: Path) -> None:
    """Text and integers meet: 0010 is not 10, neither in titles nor in attributes."""
    rows = [Row(u, item, None, n) for u in range(4) for n, item in enumerate(("10", "0010", "B"))]
    plays = write_csv(tmp_path / "rows.csv", rows)
    path = tmp_path / "i.parquet"
    pq.write_table(pa.table({"item": [10, 11], "title": ["ten", "11"], "genre": ["a", "b"]}), path)
    made = make(plays, tmp_path / "out", items=str(path), split="random", test_share=0.4)
    items = {row["raw_id"]: row for row in table(made, "items")}
    assert items["10"]["title"] == "ten" and items["10"]["genre"] > 0
    assert items["0010"]["title"] is None and items["0010"]["genre"] == 0
    assert set(items) == {"10", "0010", "B", "11"}


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([decimal.Decimal(u) for u in range(6)], pa.decimal128(38, 0)),
        pa.array([decimal.Decimal(u) for u in range(6)], pa.decimal128(18, 0)),
        pa.array(range(6), pa.uint64()),
        pa.array([b"%d" % u for u in range(6)], pa.binary()),
        pa.array([str(u) for u in range(6)]).dictionary_encode(),
    ],
    ids=["decimal38", "decimal18", "uint64", "bytes", "dictionary"],
)
def test_ids_that_are_integers(tmp_path: Path, ids: pa.Array) -> None:
    place = [n % 6 for n in range(48)]
    plays = {"user": ids.take(pa.array(place)), "item": [n // 6 for n in range(48)], "time": place}
    pq.write_table(pa.table(plays), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"user": ids, "age": ["a", "b"] * 3}), tmp_path / "users.parquet")
    made = make(
        tmp_path / "rows.parquet",
        tmp_path / "out",
        users=str(tmp_path / "users.parquet"),
        split="random",
        test_share=0.3,
    )
    users = {row["raw_id"]: row["age"] for row in table(made, "users")}
    assert set(users) == set(range(6)) and all(users.values())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array([b"\xff%d" % u for u in range(6)], pa.binary()), "bytes that are not UTF-8"),
        (pa.array([2**64 - 1 - u for u in range(6)], pa.uint64()), "beyond the largest int64"),
        (
            pa.array([decimal.Decimal(10**30 + u) for u in range(6)], pa.decimal128(38, 0)),
            "beyond the largest int64",
        ),
        (pa.array([decimal.Decimal(u) for u in range(6)], pa.decimal128(9, 2)), "which is no id"),
    ],
)
def test_ids_that_are_none(tmp_path: Path, ids: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"user": ids, "item": range(6)}), tmp_path / "rows.parquet")
    with pytest.raises(Mistake, match=rf"rows.parquet: column 'user' .*{message}"):
        make(tmp_path / "rows.parquet", tmp_path / "out")


def test_attributes_that_changed_since(tmp_path: Path) -> None:
    """An extended dataset's attribute stays what it was, or the new file is refused."""
    rows = [Row(u, 100 + (u + n) % 20, None, 10 * n + u) for n in range(12) for u in range(8)]
    old = write_csv(tmp_path / "old.csv", rows)
    made = make(
        old,
        tmp_path / "old",
        items=items_file(
            tmp_path / "old.parquet",
            {"day": pa.array(IDS, pa.date32()), "tags": [["a"]] * ITEMS, "one": ["a"] * ITEMS},
        ),
    )
    assert made.item_attributes[0].of == "time"
    new = write_csv(tmp_path / "new.csv", [Row(9, 101 + n, None, 900 + n) for n in range(9)])
    for column, values, message in (
        ("day", [float(n) for n in IDS], "holds numbers, the extended dataset's times"),
        ("one", [["a", "b"]] * ITEMS, "holds several values a row, the extended dataset's one"),
    ):
        items = items_file(tmp_path / "new.parquet", {column: values})
        with pytest.raises(Mistake, match=message):
            make(new, tmp_path / "out", extend=str(tmp_path / "old"), items=items)
    items = items_file(tmp_path / "new.parquet", {"tags": ["a|b"] * ITEMS})
    extended = make(new, tmp_path / "out", extend=str(tmp_path / "old"), items=items)
    tags = {row["raw_id"]: row["tags"] for row in table(extended, "items")}
    assert tags[101] == [1, 2]
