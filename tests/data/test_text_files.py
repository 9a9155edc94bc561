"""Text files: headers of every kind, what is packed or not UTF-8, lines that cannot be read."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from tests.data.planted import make, some_rows, table, write_csv
from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.columns import Table
from trainer.sources.text_files import header_of, readable

NAMES = ("user_id", "item_id", "time")
LINES = "".join(f"{n % 7},{n % 5},{n}\n" for n in range(200))
GOOD = "user_id,item_id,time\n" + LINES


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        yield connection


def rows_of(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Rows of a text table, read as prepare reads it."""
    relation = Table(connection, "csv", [str(path)], str(path)).relation(nulls=True)
    with readable(str(path), "csv"):
        return sql.number(connection, f"SELECT count(*) FROM (SELECT * FROM {relation})")


def zstd(text: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(text.encode())
    return bytes(sink.getvalue())


READ: dict[str, tuple[str, bytes]] = {
    "a byte order mark": ("a.csv", b"\xef\xbb\xbf" + GOOD.encode()),
    "carriage returns": ("a.csv", GOOD.replace("\n", "\r\n").encode()),
    "no last newline": ("a.csv", GOOD[:-1].encode()),
    "blanks around names": ("a.csv", GOOD.replace(",", " , ", 2).encode()),
    "quoted names": ("a.csv", ('"user_id","item_id","time"\n' + LINES).encode()),
    "gz": ("a.csv.gz", gzip.compress(GOOD.encode())),
    "zst": ("a.csv.zst", zstd(GOOD)),
    "tabs in csv": ("a.csv", GOOD.replace(",", "\t").encode()),
    "tabs": ("a.tsv", GOOD.replace(",", "\t").encode()),
    "commas in inter": ("a.inter", GOOD.encode()),
    "semicolons in tsv": ("a.tsv", GOOD.replace(",", ";").encode()),
    "bars": ("a.txt", GOOD.replace(",", "|").encode()),
    "blanks in inter": ("a.inter", GOOD.replace(",", " ").encode()),
    "blanks in csv": ("a.csv", GOOD.replace(",", " ").encode()),
}


@pytest.mark.parametrize("case", READ)
def test_read(tmp_path: Path, connection: duckdb.DuckDBPyConnection, case: str) -> None:
    name, contents = READ[case]
    path = tmp_path / name
    path.write_bytes(contents)
    assert header_of(str(path)).names == NAMES
    assert rows_of(connection, path) == 200


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (",user_id,item_id", ("", "user_id", "item_id")),
        ("user_id,item_id,", ("user_id", "item_id", "")),
        (", ,user_id,item_id", ("", "", "user_id", "item_id")),
        ('"user\nid",item_id', ("user\nid", "item_id")),
        ('"a,b;c;d;e",item_id', ("a,b;c;d;e", "item_id")),
        ('"us""er",item_id', ('us"er', "item_id")),
        ("x');DROP TABLE raw;--,b,c", ("x');DROP TABLE raw;--", "b", "c")),
    ],
)
def test_names_of_any_kind(tmp_path: Path, header: str, expected: tuple[str, ...]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(header + "\n" + LINES)
    assert header_of(str(path)).names == expected


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "bz2": ("a.csv.bz2", bz2.compress(GOOD.encode()), r"packed by bzip2: unpack it, or .*gzip"),
    "xz": ("a.csv.xz", b"\xfd7zXZ\0", "packed by xz"),
    "zip": ("a.csv.zip", b"PK\x03\x04", "packed by zip"),
    "tar": ("a.tgz", b"x", "packed by tar"),
    "gz by another name": ("a.csv", gzip.compress(b"x"), r"is gzip, though it is not named .gz"),
    "zst by another name": ("a.csv", zstd("x"), r"is zstd, though it is not named .zst"),
    "zip by another name": ("a.csv", b"PK\x03\x04", "is zip"),
    "parquet by another name": ("a.csv", b"PAR1....", r"is Parquet, though"),
    "no gz": ("a.csv.gz", GOOD.encode(), r"cannot be unpacked \(Not a gzipped file"),
    "no zst": ("a.csv.zst", GOOD.encode(), r"cannot be unpacked \(ZSTD"),
    "gz cut": ("a.csv.gz", gzip.compress(GOOD.encode())[:20], r"cannot be unpacked .* cut short"),
    "zst cut": ("a.csv.zst", zstd(GOOD)[:30], r"cannot be unpacked \(Truncated"),
    "a bomb's first line": ("a.csv.gz", gzip.compress(b"0" * (4 << 20), 1), r"longer than 1 MiB"),
    "UTF-16": ("a.csv", GOOD.encode("utf-16"), r"is UTF-16 text.*convert it to UTF-8"),
    "UTF-16 without a mark": ("a.csv", GOOD.encode("utf-16-le"), r"has NUL bytes"),
    "Latin-1": ("a.csv", b"user_id,caf\xe9\n1,2\n", r"line 1 has a byte .*0xe9.*iconv -f latin1"),
    "carriage returns alone": ("a.csv", GOOD.replace("\n", "\r").encode(), r"lines by \\r alone"),
    "no names": ("a.csv", LINES.encode(), r"line 1 has numbers where column names belong"),
    "separators alone": ("a.csv", b",,\n1,2,3\n", r"separators and no column names"),
    "an empty line": ("a.csv", b"\n" + GOOD.encode(), r"line 1 is empty: the names"),
    "a name twice": ("a.csv", b"user_id,item_id,USER_ID\n1,2,3\n", r"a column name twice.*Rename"),
    "several blanks": ("a.csv", GOOD.replace(",", "   ").encode(), r"several blanks.*by tabs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    name, contents, message = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(Mistake, match=rf"{name}.*{message}") as told:
        header_of(str(path))
    assert "\n" not in str(told.value)


BROKEN: dict[str, tuple[bytes, str]] = {
    "a column too many": (b"1,2,3,4\n", r"line 202: 4 columns, the header has 3.*'1,2,3,4'"),
    "a column too few": (b"1,2\n", r"line 202: 2 columns, the header has 3"),
    "an open quote": (b'"1,2,3\n', r"line 202: a quote that is not closed"),
    "Latin-1": (b"caf\xe9,2,3\n", r"line 202: bytes that are not UTF-8.*iconv"),
    "a long line": (b"0" * 3_000_000, r"line 202: longer than DuckDB reads"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_told(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection, case: str
) -> None:
    line, message = BROKEN[case]
    path = tmp_path / "broken [1].csv"
    path.write_bytes(GOOD.encode() + line)
    with pytest.raises(Mistake, match=message) as told:
        rows_of(connection, path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_the_broken_one_of_many_is_named(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    paths = [tmp_path / f"{name}.csv" for name in "abc"]
    for path in paths:
        path.write_text(GOOD)
    paths[1].write_text(GOOD + "1,2\n")
    table = Table(connection, "csv", [str(path) for path in paths], "folder")
    with pytest.raises(Mistake, match=r"b\.csv line 202: 2 columns"), readable("folder", "csv"):
        connection.execute(f"CREATE TABLE t AS SELECT * FROM {table.relation(nulls=True)}")


def test_files_that_do_not_belong_together(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "b.csv").write_text(GOOD.replace(",", ";"))
    files = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    with pytest.raises(Mistake, match=r"b.csv separates columns by ';', .*a.csv by ','"):
        Table(connection, "csv", files, "folder")


class TestMissingIds:
    """What stands for a missing value, and what is somebody's name."""

    def test_told_with_what_it_reads(self, tmp_path: Path) -> None:
        source = write_csv(tmp_path / "rows.csv", some_rows())
        source.write_text(source.read_text() + "None,3,5\n")
        with pytest.raises(Mistake, match=r"first in row 49, where it reads 'None'.*quote it"):
            make(source, tmp_path / "out")

    def test_quoted_and_typed_ones_are_names(self, tmp_path: Path) -> None:
        lines = "".join(f'"{name}",{n},{n}\n' for name in ("None", "null", "Nan") for n in range(5))
        source = tmp_path / "rows.csv"
        source.write_text("user_id,item_id,time\n" + lines + LINES)
        typed = tmp_path / "rows.parquet"
        duckdb.execute(
            f"COPY (FROM read_csv('{source}', nullstr='', all_varchar=true)) TO '{typed}'"
        )
        for path in (source, typed):
            dataset = make(path, tmp_path / f"out {path.suffix}", drop_null_ids=True)
            names = {row["raw_id"] for row in table(dataset, "users")}
            assert {"None", "null", "Nan"} <= names and not dataset.dropped.get("missing_id")

    def test_side_tables(self, tmp_path: Path) -> None:
        """Only their ids can be missing so: a film may be called None."""
        source = write_csv(tmp_path / "rows.csv", some_rows())
        items = tmp_path / "items.csv"
        items.write_text("item,title,genre\n100,None,a\n101,NaN,b\n102,,a\nnull,x,b\n")
        with pytest.raises(Mistake, match=r"items.csv is missing .*where it reads 'null'"):
            make(source, tmp_path / "no", items=str(items))
        dataset = make(source, tmp_path / "out", items=str(items), drop_null_ids=True)
        titles = {row["raw_id"]: row["title"] for row in table(dataset, "items")}
        assert [titles[item] for item in (100, 101, 102)] == ["None", "NaN", None]
        assert dataset.notes["rows_of_items_without_id"] == 1
