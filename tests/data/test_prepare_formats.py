"""Sources of every format, ids and times of every type, attributes and titles."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import fsspec
import pytest

from tests.data.planted import Row, interactions, make, queries, some_rows, table, write_csv
from trainer.data.schema import Dataset


def raw_pairs(dataset: Dataset) -> set[tuple[object, object]]:
    """(raw user, raw item) of all splits."""
    users = {row["user"]: row["raw_id"] for row in table(dataset, "users")}
    items = {row["item"]: row["raw_id"] for row in table(dataset, "items")}
    return {
        (users[row["user"]], items[row["item"]])
        for split in dataset.splits
        for row in interactions(dataset, split)
    }


def test_lightgcn_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.txt").write_text(
        "".join(f"{user} {' '.join(str(user + n) for n in range(10))}\n" for user in range(12))
        + "12\n"
    )
    (source / "test.txt").write_text("0 20 21\n3 21 4\n5 \n")
    dataset = make(source, tmp_path / "out")
    assert dataset.source["format"] == "lightgcn"
    assert dataset.split_rule["rule"] == "given"
    assert not dataset.has_timestamps and not dataset.has_feedback
    assert dataset.splits["train"].rows + dataset.splits["validation"].rows == 120
    assert dataset.splits["test"].rows == 3
    assert dataset.dropped == {"duplicate": 1}  # item 4 of user 3 is in train already
    users = {row["user"]: row["raw_id"] for row in table(dataset, "users")}
    items = {row["item"]: row["raw_id"] for row in table(dataset, "items")}
    asked = {
        users[row["user"]]: [items[each] for each in row["targets"]]
        for row in queries(dataset, "test")
    }
    assert asked == {0: [20, 21], 3: [21]}


def test_recbole_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rows = [Row(n % 7, n % 11, 1 + n % 5, 5000 + n) for n in range(77)]
    (source / "tiny.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"u{r.user}\t{r.item}\t{r.rating}\t{r.timestamp}.0\n" for r in rows)
    )
    (source / "tiny.item").write_text(
        "item_id:token\tmovie_title:token_seq\tgenre:token_seq\tprice:float\tcode:token\n"
        + "".join(f'{n}\tFilm "{n}"\tg{n % 2} all\t{n / 2}\t{n:03d}\n' for n in range(11))
    )
    dataset = make(source, tmp_path / "out")
    assert dataset.source["format"] == "recbole"
    assert dataset.source["thresholds"] == {"positive": 4.0, "dislike": 2.0}
    assert dataset.dropped == {"neutral_rating": len([r for r in rows if r.rating == 3])}
    kinds = {each.name: (each.kind, each.num_values) for each in dataset.item_attributes}
    assert kinds == {"genre": ("multi", 4), "price": ("number", 0), "code": ("single", 12)}
    items = {row["raw_id"]: row for row in table(dataset, "items")}
    assert items[3]["title"] == 'Film "3"'
    values = {(row["name"], row["row"]): row["value"] for row in table(dataset, "attributes")}
    assert {values["genre", each] for each in items[3]["genre"]} == {"g1", "all"}
    assert values["code", items[3]["code"]] == "003"
    assert items[0]["price"] < items[5]["price"] < items[10]["price"]
    assert {row["raw_id"] for row in table(dataset, "users")} == {f"u{n}" for n in range(7)}


def test_movielens_dat(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "ratings.dat").write_text(
        "".join(f"{n % 5}::{n % 9}::{1 + n % 5}::{900 + n}\n" for n in range(45))
    )
    (source / "movies.dat").write_bytes(
        "".join(f"{n}::Amélie {n} (2001)::Drama|Genre {n % 3}\n" for n in range(10)).encode(
            "latin-1"
        )
    )
    (source / "users.dat").write_text("".join(f"{n}::F::25::{n}::1000{n}\n" for n in range(5)))
    dataset = make(source, tmp_path / "out", split="random", test_share=0.3, validation_share=0.3)
    assert dataset.source["format"] == "movielens"
    assert dataset.num_items == 10  # film 9 was never rated and is in the catalog
    items = {row["raw_id"]: row for row in table(dataset, "items")}
    assert items[9]["title"] == "Amélie 9 (2001)" and items[9]["count"] == 0
    assert len(items[9]["genres"]) == 2
    names = [each.name for each in dataset.user_attributes]
    assert names == ["gender", "age", "occupation", "zip_code"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "gz", "parquet", "folder", "glob"])
def test_tables_agree(tmp_path: Path, kind: str) -> None:
    rows = some_rows()
    plain = write_csv(tmp_path / "rows.csv", rows)
    expected = make(plain, tmp_path / "expected")
    text = plain.read_text()
    source: Path = tmp_path / "source"
    source.mkdir()
    match kind:
        case "csv":
            source = plain
        case "tsv":
            source = source / "rows.tsv"
            source.write_text(text.replace(",", "\t"))
        case "semicolon":
            source = source / "rows.csv"
            source.write_text(text.replace(",", ";"))
        case "gz":
            source = source / "rows.csv.gz"
            source.write_bytes(gzip.compress(text.encode()))
        case "parquet":
            source = source / "rows.parquet"
            duckdb.execute(f"COPY (FROM read_csv('{plain}')) TO '{source}' (FORMAT parquet)")
        case _:
            header, *lines = text.splitlines(keepends=True)
            (source / "a.csv").write_text(header + "".join(lines[:20]))
            (source / "b.csv").write_text(header + "".join(lines[20:]))
            source = source / "*.csv" if kind == "glob" else source
    assert make(source, tmp_path / "out").digest == expected.digest


def test_files_that_name_their_split(tmp_path: Path) -> None:
    rows = some_rows()
    for name, part in (("train", rows[:36]), ("valid", rows[36:42]), ("test", rows[42:])):
        (tmp_path / "source" / name).mkdir(parents=True)
        write_csv(tmp_path / "source" / name / "part-0.csv", part)
    dataset = make(tmp_path / "source", tmp_path / "out")
    assert dataset.split_rule["rule"] == "given"
    assert [each.rows for each in dataset.splits.values()] == [36, 6, 6]


def test_object_store(tmp_path: Path) -> None:
    rows = some_rows()
    local = write_csv(tmp_path / "rows.csv", rows)
    with fsspec.open("memory://bucket/source/rows.csv", "wb") as stream:
        stream.write(local.read_bytes())
    remote = make("memory://bucket/source/rows.csv", tmp_path / "out")
    assert remote.digest == make(local, tmp_path / "expected").digest


def test_ids_keep_their_type(tmp_path: Path) -> None:
    big = 2**53 + 1
    rows = [Row(big + n % 4, f"{n % 6:02d}", None, n) for n in range(24)]
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out")
    assert {row["raw_id"] for row in table(dataset, "users")} == {big + n for n in range(4)}
    assert {row["raw_id"] for row in table(dataset, "items")} == {f"{n:02d}" for n in range(6)}
    assert raw_pairs(dataset) == {(row.user, row.item) for row in rows}
    for name, side in (("users", "user"), ("items", "item")):
        assert [row[side] for row in table(dataset, name)] == list(range(len(table(dataset, name))))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (lambda n: str(1_700_000_000 + n), lambda n: 1_700_000_000 + n),
        (lambda n: f"{1_700_000_000 + n}.0", lambda n: 1_700_000_000 + n),
        (lambda n: f"{n}.25", lambda n: n * 1_000_000 + 250_000),
        (
            lambda n: datetime.fromtimestamp(86_400 * n, UTC).strftime("%Y-%m-%d"),
            lambda n: 86_400_000_000 * n,
        ),
        (
            lambda n: datetime.fromtimestamp(n, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            lambda n: 1_000_000 * n,
        ),
        (lambda n: f"1970-01-01 02:00:{n:02d}+02:00", lambda n: 1_000_000 * n),
    ],
)
def test_times(tmp_path: Path, written: object, expected: object) -> None:
    assert callable(written) and callable(expected)
    lines = [f"{n % 5},{n % 12},{written(n)}" for n in range(48)]
    source = tmp_path / "rows.csv"
    source.write_text("\n".join(["user,item,timestamp", *lines]) + "\n")
    dataset = make(source, tmp_path / "out")
    users, items, place_of = raw_ids(dataset, "user"), raw_ids(dataset, "item"), places(48)
    for split in dataset.splits:
        for row in interactions(dataset, split):
            assert row["timestamp"] == expected(place_of[users[row["user"]], items[row["item"]]])


def raw_ids(dataset: Dataset, side: str) -> list[int]:
    """Raw id of each row."""
    return [row["raw_id"] for row in table(dataset, f"{side}s")]


def places(rows: int) -> dict[tuple[int, int], int]:
    """Row of the source that has a user and an item: 5 users and 12 items come round again."""
    return {(n % 5, n % 12): n for n in range(rows)}


def test_times_of_parquet(tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    duckdb.execute(
        "COPY (SELECT i % 5 AS user, i % 12 AS item, TIMESTAMP '1970-01-01' + to_seconds(i) AS ts "
        f"FROM range(48) AS r(i)) TO '{source}' (FORMAT parquet)"
    )
    dataset = make(source, tmp_path / "out")
    assert dataset.source["timestamp_unit"] == "microseconds"
    users, items = raw_ids(dataset, "user"), raw_ids(dataset, "item")
    for row in interactions(dataset, "train"):
        place = places(48)[users[row["user"]], items[row["item"]]]
        assert row["timestamp"] == 1_000_000 * place


def test_missing_times_and_ratings_are_counted(tmp_path: Path) -> None:
    lines = [f"{n % 5},{n % 12},{1 + n % 5},{n}" for n in range(48)]
    source = tmp_path / "rows.csv"
    source.write_text("user,item,rating,timestamp\n" + "\n".join(lines) + "\n1,0,,9\n2,0,5,\n")
    dataset = make(source, tmp_path / "out")
    assert dataset.dropped["missing_rating"] == 1
    assert dataset.dropped["missing_timestamp"] == 1
    kept = sum(each.rows for each in dataset.splits.values())
    assert kept + sum(dataset.dropped.values()) == dataset.source["rows"] == 50


def test_items_file(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "rows.csv", some_rows())
    items = tmp_path / "items.csv"
    lines = ["item,name,genres,year,color,user,note"]
    for n in range(100, 120):
        genres = "" if n == 101 else f"a|b{n % 3}"
        color = "" if n == 102 else "red" if n % 2 else "blue"
        lines.append(f'{n},"Thing, no {n}",{genres},{1900 + n},{color},{n % 2},same')
    items.write_text("\n".join(lines) + "\n")
    dataset = make(source, tmp_path / "out", items=str(items))
    assert dataset.num_items == 20
    rows = {row["raw_id"]: row for row in table(dataset, "items")}
    assert rows[100]["title"] == "Thing, no 100"
    assert rows[101]["genres"] == [] and rows[102]["color"] == 0
    kinds = {each.name: each.kind for each in dataset.item_attributes}
    assert kinds == {
        "genres": "multi",
        "year": "single",
        "color": "single",
        "user_": "single",
        "note": "single",
    }
    vocabulary = table(dataset, "attributes")
    for each in dataset.item_attributes:
        own = [row for row in vocabulary if row["name"] == each.name]
        assert [row["row"] for row in own] == list(range(each.num_values))
        assert own[0]["value"] is None
    color = {row["value"]: row["count"] for row in vocabulary if row["name"] == "color"}
    assert color == {None: 1, "red": 10, "blue": 9}
    chosen = make(source, tmp_path / "chosen", items=str(items), item_attributes=("color",))
    assert [each.name for each in chosen.item_attributes] == ["color"]


def test_numbers_of_many_values_become_buckets(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "rows.csv", some_rows())
    items = tmp_path / "items.parquet"
    duckdb.execute(
        "COPY (SELECT 100 + i AS item, (i * i)::DOUBLE AS price, [i, i % 3] AS tags FROM "
        f"range(160) AS r(i)) TO '{items}' (FORMAT parquet)"
    )
    dataset = make(source, tmp_path / "out", items=str(items), buckets=("price",))
    price = next(each for each in dataset.item_attributes if each.name == "price")
    assert price.num_values == 17 and len(price.boundaries) == 15
    rows = sorted(table(dataset, "items"), key=lambda row: row["raw_id"])
    buckets = [row["price"] for row in rows]
    assert buckets == sorted(buckets) and set(buckets) == set(range(1, 17))
    assert max(buckets.count(each) for each in range(1, 17)) <= 12
    assert all(
        len(row["tags"]) == len({row["raw_id"] - 100, (row["raw_id"] - 100) % 3}) for row in rows
    )
