"""Sources of interactions, items and users: CSV, TSV, Parquet and packed ones, right or odd."""

from __future__ import annotations

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tests.hostile.values import WORDS

USERS, ITEMS = 12, 9
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-16-le", "cp037")
ODD_NAMES = st.sampled_from(
    [
        *("user", "item", "USER", "Item", "COUNT", "rowid", "raw_id", "raw", "", " ", "index"),
        *("a'b", 'a"b', "a;b", "select", "user; DROP TABLE raw", "[red]x[/red]", ":heart:", "💥"),
        *("a\nb", "x" * 300, "file_row_number", "filename", "side", "*", "title", "row", "value"),
        *("feedback", "history", "timestamp", "rating", "user_id", "item_id", "NULL", "1", "%s"),
    ]
)


def rows_of(seed: int, count: int) -> list[dict[str, Any]]:
    """Interactions of USERS with ITEMS, a rating and a time each."""
    chance = random.Random(seed)
    return [
        {
            "user": chance.randrange(USERS),
            "item": 100 + chance.randrange(ITEMS),
            "rating": chance.randrange(1, 6),
            "timestamp": 1_600_000_000 + chance.randrange(10**7),
        }
        for _ in range(count)
    ]


@st.composite
def csv_sources(draw: st.DrawFn) -> tuple[str, bytes, int | None]:
    """Name, bytes, and how many rows it has where it is well formed."""
    rows = rows_of(draw(st.integers(0, 99)), draw(st.sampled_from((0, 1, 2, 40, 40, 40, 200))))
    separator = draw(st.sampled_from((",", ",", ",", "\t", ";", "|", " ")))
    names = ["user", "item", *(["rating"] if draw(st.booleans()) else [])]
    names += ["timestamp"] if draw(st.booleans()) else []
    lines = [[str(row[name]) for name in names] for row in rows]
    known: int | None = len(rows)
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 2)))):
        known = _spoiled(draw, names, lines, known)
    end = draw(st.sampled_from(("\n", "\n", "\n", "\r\n", "\r")))
    text = end.join(separator.join(line) for line in [names, *lines]) + draw(
        st.sampled_from(("", end, end * 3, '"', "\x00"))
    )
    encoding = draw(st.sampled_from(ENCODINGS))
    content = text.encode(encoding, "replace")
    if encoding not in ("utf-8", "utf-8-sig") or end == "\r" or separator in " ;|":
        known = None
    suffix = draw(st.sampled_from((".csv", ".csv", ".tsv", ".txt", ".inter", ".dat", ".CSV", "")))
    packed = draw(st.sampled_from(("", "", "", ".gz", ".bz2", ".zst", ".gz-not")))
    if packed == ".gz":
        content = gzip.compress(content, mtime=0)
        content = content[:-5] if draw(st.integers(0, 4)) == 0 else content
        known = None
    elif packed == ".bz2":
        content, known = bz2.compress(content), None
    return f"src{suffix}{packed.removesuffix('-not')}", content, known if not packed else None


def _spoiled(draw: st.DrawFn, names: list[str], lines: list[list[str]], known: int | None) -> Any:
    """One thing goes wrong with a table of text; how many rows are known then."""
    act = draw(st.integers(0, 8))
    lines[:] = [line or [""] for line in lines]
    place = draw(st.integers(0, max(len(lines) - 1, 0)))
    column = draw(st.integers(0, len(names) - 1))
    if act == 0:
        names[column] = draw(ODD_NAMES).replace("\n", " ")
    elif act == 1:
        name = draw(ODD_NAMES)
        names.append('"' + name.replace('"', '""') + '"')
        for line in lines:
            line.append(draw(st.sampled_from(("", "x", "1"))))
        return None
    elif act == 2 and lines:
        lines[place] = lines[place][:-1]
    elif act == 3 and lines:
        lines[place] = [*lines[place], "more", ""]
    elif act == 4 and lines:
        odd = st.sampled_from(
            ("", "NULL", "nan", "-1", "1e400", "9" * 40, "0010", "2020-13-45", " 7")
        )
        lines[place][min(column, len(lines[place]) - 1)] = draw(odd)
    elif act == 5 and lines:
        lines[place][0] = '"' + lines[place][0]
    elif act == 6 and lines:
        word = draw(WORDS).encode("utf-8", "replace").decode()
        lines[place][0] = '"' + word.replace('"', '""') + '"'
    elif act == 7:
        names.append("")
        for line in lines:
            line.append("")
    else:
        lines.insert(place, [])
    return None


def _columns(chance: random.Random, rows: int) -> dict[str, pa.Array]:
    """A column for each odd type."""
    numbers = [chance.randrange(1, 9) for _ in range(rows)]
    utc = datetime.UTC
    day = datetime.date(2020, 1, 1)
    moments = [datetime.datetime(2020, 1, number, tzinfo=utc) for number in numbers]
    return {
        "int8": pa.array(numbers, pa.int8()),
        "uint64": pa.array([2**64 - number for number in numbers], pa.uint64()),
        "float": pa.array([number / 2 for number in numbers]),
        "nan": pa.array([float("nan")] * rows),
        "inf": pa.array([float("inf")] * rows),
        "half": pa.array(numbers, pa.float16()),
        "text": pa.array([f"t{number}" for number in numbers]),
        "large_text": pa.array([f"t{number}" for number in numbers], pa.large_string()),
        "dictionary": pa.array([f"t{number}" for number in numbers]).dictionary_encode(),
        "binary": pa.array([bytes([number, 255]) for number in numbers]),
        "utf8_binary": pa.array([b"u%d" % number for number in numbers]),
        "bool": pa.array([number > 4 for number in numbers]),
        "decimal": pa.array(
            [decimal.Decimal(number) / 4 for number in numbers], pa.decimal128(9, 2)
        ),
        "decimal38": pa.array(
            [decimal.Decimal(number) for number in numbers], pa.decimal128(38, 0)
        ),
        "date": pa.array([day] * rows),
        "zoned": pa.array(moments, pa.timestamp("us", tz="Europe/Paris")),
        "nanos": pa.array(moments, pa.timestamp("ns", tz="UTC")),
        "seconds": pa.array([2**50] * rows, pa.timestamp("s")),
        "time": pa.array([datetime.time(number) for number in numbers]),
        "list": pa.array([[number] for number in numbers]),
        "struct": pa.array([{"a": number} for number in numbers]),
        "map": pa.array([[("k", number)] for number in numbers], pa.map_(pa.string(), pa.int64())),
        "nulls": pa.nulls(rows),
        "some_null": pa.array([number if number > 2 else None for number in numbers], pa.int64()),
        "fixed": pa.array([b"%04d" % number for number in numbers], pa.binary(4)),
        "duration": pa.array([datetime.timedelta(number) for number in numbers]),
    }


TYPES = tuple(_columns(random.Random(0), 1))


@st.composite
def parquet_sources(draw: st.DrawFn) -> tuple[str, bytes, int | None]:
    """The same as Parquet: a column of another type, an odd name, nulls, no rows, more columns."""
    seed = draw(st.integers(0, 99))
    rows = rows_of(seed, draw(st.sampled_from((0, 1, 40, 40, 40, 300))))
    names = ["user", "item", "rating", "timestamp"][: draw(st.integers(1, 4))]
    columns: dict[str, Any] = {
        name: pa.array([row[name] for row in rows], pa.int64()) for name in names
    }
    odd = _columns(random.Random(seed), len(rows))
    known: int | None = len(rows)
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(TYPES))
        name = draw(st.sampled_from(("user", "item", "rating", "timestamp")) | ODD_NAMES)
        columns[name], known = odd[kind], None
    content = _written(columns)
    if draw(st.integers(0, 9)) == 0:
        content, known = content[: draw(st.integers(0, len(content)))], None
    suffix = draw(st.sampled_from((".parquet", ".parquet", ".parquet", ".pq", ".csv")))
    return f"src{suffix}", content, known if suffix == ".parquet" else None


def _written(columns: dict[str, Any]) -> bytes:
    names = [name.encode("utf-8", "replace").decode() for name in columns]
    stream = io.BytesIO()
    pq.write_table(pa.table(list(columns.values()), names=names), stream)
    return stream.getvalue()


@st.composite
def side_tables(draw: st.DrawFn, side: str) -> tuple[str, bytes]:
    """A file of items or users: titles and attributes of any type, doubled ids, strange names."""
    first, count = (100, ITEMS) if side == "items" else (0, USERS)
    ids: list[Any] = [first + number for number in range(count)]
    if draw(st.integers(0, 3)) == 0:
        ids[-1] = ids[0]
    columns: dict[str, Any] = {side[:-1]: pa.array(ids)}
    if draw(st.booleans()):
        columns["title"] = pa.array([draw(WORDS).encode("utf-8", "replace").decode() for _ in ids])
    odd = _columns(random.Random(draw(st.integers(0, 99))), count)
    for _ in range(draw(st.integers(0, 3))):
        columns[draw(ODD_NAMES)] = odd[draw(st.sampled_from(TYPES))]
    if draw(st.booleans()):
        return f"{side}.parquet", _written(columns)
    words = {name: [_word(value) for value in each] for name, each in columns.items()}
    stream = io.StringIO()
    sheet = csv.writer(stream, delimiter="\t", lineterminator="\n")
    sheet.writerow(words)
    sheet.writerows(zip(*words.values(), strict=True))
    return f"{side}.tsv", stream.getvalue().encode("utf-8", "replace")


def _word(value: pa.Scalar) -> str:
    try:
        return str(value.as_py())
    except OverflowError:  # a time beyond those of Python
        return str(value.value)


STRANGE = st.sampled_from(
    [
        ("src.json", json.dumps([{"user": 1, "item": 2}]).encode(), None),
        ("src.xlsx", b"PK\x03\x04" + b"\x00" * 50, None),
        ("src.parquet", b"", None),
        ("src.csv", b"", None),
        ("src.csv", b"\n\n\n", None),
        ("src.csv", b"\xef\xbb\xbf", None),
        ("src.csv", b"\x00" * 1000, None),
        ("src.csv", b"user,item\n" + b"x" * 3_000_000, None),
        ("src.csv", b"," * 5000 + b"\n", None),
        ("src.csv.gz", b"\x1f\x8b\x08\x00", None),
        ("src.csv.gz", gzip.compress(b"0" * 20_000_000, mtime=0), None),
        ("src.parquet", b"PAR1" + b"\xff" * 8 + b"PAR1", None),
        ("src.csv", b'user,item\n"1,2\n3,4\n', None),
        ("train.txt", b"0 1 2 3\n1 2 3\n2\n3 3 4 5\n", None),
        ("ratings.dat", b"1::2::5::978300760\n1::3::3::978300761\n2::2::4::978300762\n", None),
        ("a.inter", b"user_id:token\titem_id:token\n1\t2\n1\t3\n2\t2\n", None),
    ]
)


@st.composite
def _right(draw: st.DrawFn) -> tuple[str, bytes, int | None]:
    """Forty rows as anybody has them, with times and ratings or without."""
    rows = rows_of(draw(st.integers(0, 99)), 40)
    names = ["user", "item", "rating", "timestamp"][: draw(st.sampled_from((2, 3, 4, 4)))]
    if draw(st.booleans()):
        columns = {name: pa.array([row[name] for row in rows], pa.int64()) for name in names}
        return "src.parquet", _written(columns), len(rows)
    lines = [",".join(str(row[name]) for name in names) for row in rows]
    return "src.csv", "\n".join([",".join(names), *lines, ""]).encode(), len(rows)


RIGHT_SOURCES = _right()
SOURCES = st.one_of(csv_sources(), csv_sources(), parquet_sources(), parquet_sources(), STRANGE)
