"""The table of docs/data.md that says what is read and what is refused: a case a line.

A line that has no case, or a case that has no line, fails; so does one that comes out otherwise.
"""

from __future__ import annotations

import datetime
import decimal
import gzip
import importlib.util
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import PrepareArguments, prepare
from trainer.prepare.staging import check_source, load_raw
from trainer.sources import hub, sql
from trainer.sources.columns import Columns
from trainer.sources.formats.every import read_source
from trainer.sources.side_tables import SideFiles
from trainer.sources.sources import Source
from trainer.sources.times import times_of

PAGE = Path(__file__).resolve().parents[2] / "docs/data.md"
LINE = re.compile(r"\| `([a-z0-9-]+)` \| .+ \| (read|refused|left out)(.*) \|")
SECOND, MICRO = 1_700_000_000, 1_000_000


@dataclass(frozen=True)
class Read:
    """What comes of a source: its rows of ids, and perhaps more of it."""

    rows: list[tuple[Any, ...]] | None = None
    """(user, item) in order."""
    times: list[int] | None = None
    columns: Columns = field(default_factory=Columns)
    drop_null_ids: bool = False
    note: str = ""
    """What must be told."""
    context: list[Any] | None = None
    """Values of x0, where columns.context names one."""


Case = tuple[Callable[[Path], Any], Read]
CASES: dict[str, Case] = {}
TWO: list[tuple[Any, ...]] = [("a", "x"), ("b", "y")]
TEXT = "user,item\na,x\nb,y\n"


def text(
    contents: str | bytes, name: str = "rows.csv", rows: list[tuple[Any, ...]] | None = None
) -> Case:
    """A case of a text file."""

    def build(folder: Path) -> Path:
        data = contents.encode() if isinstance(contents, str) else contents
        (folder / name).write_bytes(data)
        return folder / name

    return build, Read(TWO if rows is None else rows)


def columns(read: Read | None = None, **values: Any) -> Case:
    """A case of a Parquet file; of two users where it says no other."""
    both = {"user": ["a", "b"], "item": ["x", "y"], **values}

    def build(folder: Path) -> Path:
        pq.write_table(pa.table(both), folder / "rows.parquet")
        return folder / "rows.parquet"

    return build, read or Read(TWO)


def zstd(data: str) -> bytes:
    return bytes(pa.Codec("zstd").compress(data.encode(), asbytes=True))


def packed_parquet(folder: Path) -> Path:
    for codec in ("zstd", "snappy", "gzip", "lz4", "brotli", "none"):
        table = pa.table({"user": ["a"], "item": [codec]})
        pq.write_table(table, folder / f"{codec}.parquet", compression=codec)
    return folder


CASES |= {
    "plain": text(TEXT),
    "gzip": text(gzip.compress(TEXT.encode()), "rows.csv.gz"),
    "zstd": text(zstd(TEXT), "rows.csv.zst"),
    "other-packing": text(b"BZh91AY", "rows.csv.bz2"),
    "unnamed-packing": text(gzip.compress(TEXT.encode())),
    "damaged-packing": text(gzip.compress(TEXT.encode())[:-12], "rows.csv.gz"),
    "parquet-packing": (
        packed_parquet,
        Read([("a", each) for each in ("brotli", "gzip", "lz4", "none", "snappy", "zstd")]),
    ),
    "utf8": text("user,item\nä,x\nß,y\n", rows=[("ä", "x"), ("ß", "y")]),
    "bom": text(b"\xef\xbb\xbf" + TEXT.encode()),
    "utf16": text(TEXT.encode("utf-16")),
    "latin1": text("user,item\nä,x\nß,y\n".encode("latin-1")),
    "latin1-header": text("user,item,größe\na,x,1\n".encode("latin-1")),
    "crlf": text(TEXT.replace("\n", "\r\n")),
    "cr-alone": text(TEXT.replace("\n", "\r")),
    "quoted": text(
        'user,item\n"a, or ""b""","x\ny"\nb,y\n', rows=[('a, or "b"', "x\ny"), ("b", "y")]
    ),
    "open-quote": text('user,item\n"a,x\nb,y\n'),
    "tab-quotes": text('user\titem\n"a\tx\nb\ty\n', "rows.tsv", rows=[('"a', "x"), ("b", "y")]),
    "long-line": text("user,item\na,x,1\nb,y\n"),
    "no-header": text("1,2\n3,4\n"),
    "name-twice": text("user,item,User\na,x,1\n"),
    "no-name": text(",user,item\n0,a,x\n1,b,y\n"),
}
SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "bar": "|", "blank": " "}
for word, separator in SEPARATORS.items():
    CASES[f"separator-{word}"] = text(TEXT.replace(",", separator))

IDS = Read([(1, "x"), (2, "y")])
UUIDS = [uuid.UUID(int=1), uuid.UUID(int=2)]
CASES |= {
    "id-integers": columns(IDS, user=[1, 2]),
    "id-integers-as-text": text("user,item\n1,x\n2,y\n", rows=IDS.rows),
    "id-leading-zeros": text("user,item\n007,x\n2,y\n", rows=[("007", "x"), ("2", "y")]),
    "id-uuid": columns(
        Read([(str(UUIDS[0]), "x"), (str(UUIDS[1]), "y")]),
        user=pa.array([each.bytes for each in UUIDS], pa.uuid()),
    ),
    "id-decimal": columns(IDS, user=[decimal.Decimal("1"), decimal.Decimal("2")]),
    "id-bytes": columns(user=[b"a", b"b"]),
    "id-other-bytes": columns(user=[b"\xff", b"b"]),
    "id-float": columns(user=[1.5, 2.0]),
    "id-date": columns(user=[datetime.date(2024, 1, 1)] * 2),
    "id-beyond": columns(user=pa.array([2**64 - 1, 1], pa.uint64())),
    "id-missing": text("user,item\n,x\nb,y\n"),
    "id-missing-dropped": (
        text("user,item\n,x\nnull,z\nb,y\n")[0],
        Read([("b", "y")], drop_null_ids=True),
    ),
    "id-none-quoted": text('user,item\n"None",x\nb,y\n', rows=[("None", "x"), ("b", "y")]),
}


def timed(times: Any, expected: list[int] | None = None) -> Case:
    return columns(Read(TWO, times=expected), timestamp=times)


CASES |= {
    "time-integers": timed([SECOND, SECOND + 1], [SECOND, SECOND + 1]),
    "time-date": timed([datetime.date(1970, 1, 2)] * 2, [86_400 * MICRO] * 2),
    "time-zone": timed(
        pa.array([datetime.datetime(1970, 1, 1, 1)] * 2, pa.timestamp("ms", "Europe/Berlin")),
        [3600 * MICRO] * 2,
    ),
    "time-fraction": timed(
        [SECOND + 0.5, SECOND + 1.0], [SECOND * MICRO + 500_000, (SECOND + 1) * MICRO]
    ),
    "time-text": (
        text("user,item,time\na,x,1970-01-01T00:00:01Z\nb,y,1970-01-01 00:00:02\n")[0],
        Read(TWO, times=[MICRO, 2 * MICRO]),
    ),
    "time-words": timed(["yesterday", "today"], []),
    "time-nested": timed([[1], [2]], []),
}


def hive(write: Callable[[Path], None], name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        for day in ("2026-01-01", "2026-01-02"):
            (folder / f"dt={day}/hour=07").mkdir(parents=True)
            write(folder / f"dt={day}/hour=07/{name}")
        return folder

    return build


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"user": ["a"], "item": ["x"]}), path)


def remote(folder: Path) -> str:
    hive(write_parquet, "part-0.parquet")(folder)
    memory = fsspec.filesystem("memory")
    for file in folder.rglob("*.parquet"):
        memory.pipe(f"/sources-table/{file.relative_to(folder)}", file.read_bytes())
    return "memory://sources-table"


def unlike(folder: Path) -> Path:
    (folder / "dt=1").mkdir()
    write_parquet(folder / "dt=1/a.parquet")
    write_parquet(folder / "b.parquet")
    return folder


def missing_column(folder: Path) -> Path:
    pq.write_table(pa.table({"user": ["a"], "item": ["x"], "timestamp": [7]}), folder / "a.parquet")
    pq.write_table(pa.table({"user": ["b"], "item": ["y"]}), folder / "b.parquet")
    return folder


def two_headers(folder: Path) -> Path:
    (folder / "a.csv").write_text(TEXT)
    (folder / "b.csv").write_text("user,item,rating\nc,z,1\n")
    return folder


DAYS = [("a", "x"), ("a", "x")]
BY_DAY = Read(
    DAYS,
    times=[1_767_225_600 * MICRO, 1_767_312_000 * MICRO],
    columns=Columns(timestamp="dt", context=("hour",)),
    context=["07", "07"],
)


def many(folder: Path) -> Path:
    for number, (user, item) in enumerate(TWO):
        (folder / f"part-{number}.csv").write_text(f"user,item\n{user},{item}\n")
    return folder


def lake(log: str, below: str = "") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        table = folder / below
        (table / log).parent.mkdir(parents=True)
        write_parquet(table / "part-0.parquet")
        (table / log).write_text("{}\n")
        return folder

    return build


HUB = "hf://datasets/someone/some"


class Hub(MemoryFileSystem):
    """Stands in for DuckDB's reader of the hub, which is on few machines: opens and lists."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hf://").strip("/")


def load_stand_in(connection: duckdb.DuckDBPyConnection) -> bool:
    filesystem = Hub(skip_instance_cache=True)
    for name, user, item in (
        ("some/1/rows.parquet", "a", "x"),
        ("some/deep/er/rows.parquet", "b", "y"),
        ("some@v1/1/rows.parquet", "a", "old"),
        ("some@v1/2/rows.parquet", "b", "new"),
    ):
        with filesystem.open(f"hf://datasets/someone/{name}", "wb") as stream:
            pq.write_table(pa.table({"user": [user], "item": [item]}), stream)
    filesystem.pipe(f"{HUB}/rows.csv", TEXT.encode())
    connection.register_filesystem(filesystem)
    return True


CASES |= {
    "folder": (many, Read(TWO)),
    "glob": (lambda folder: many(folder) / "part-*.csv", Read(TWO)),
    "hive-parquet": (hive(write_parquet, "part-0.parquet"), BY_DAY),
    "hive-csv": (
        hive(lambda path: path.write_text("user,item\na,x\n") and None, "part-0.csv"),
        BY_DAY,
    ),
    "hive-glob": (
        lambda folder: hive(write_parquet, "part-0.parquet")(folder) / "dt=*/*/*.parquet",
        BY_DAY,
    ),
    "hive-remote": (remote, BY_DAY),
    "hive-above": (
        lambda folder: hive(write_parquet, "part-0.parquet")(folder) / "dt=2026-01-01/hour=07",
        Read([("a", "x")], columns=Columns(timestamp="dt")),
    ),
    "hive-unlike": (unlike, Read(DAYS, note="name different columns")),
    "column-missing": (missing_column, Read(TWO, times=[7])),
    "two-headers": (two_headers, Read()),
    "delta": (lake("_delta_log/00000000000000000000.json"), Read()),
    "iceberg": (lake("metadata/v1.metadata.json"), Read()),
    "lake-below": (lake("_delta_log/0.json", "table"), Read()),
    "hugging-face": (lambda folder: f"{HUB}/rows.parquet", Read()),
    "hugging-face-form": (lambda folder: "hf://someone/some", Read()),
    "hugging-face-folder": (lambda folder: HUB, Read([("a", "x"), ("b", "y")])),
    "hugging-face-revision": (lambda folder: f"{HUB}@v1/2*/*.parquet", Read([("b", "new")])),
    "hugging-face-none": (lambda folder: f"{HUB}/2*/*.parquet", Read()),
    "hugging-face-csv": (lambda folder: f"{HUB}/*.csv*", Read()),
}


def of_items(value: pa.Array, *insist: str) -> Case:
    """A case of a column `c` of --items, prepared as a whole."""

    def build(folder: Path) -> Any:
        rows = [("u" + str(n % 4), n % 6) for n in range(24)]
        user, item = zip(*rows, strict=True)
        pq.write_table(pa.table({"user": user, "item": item}), folder / "rows.parquet")
        pq.write_table(pa.table({"item": range(6), "c": value}), folder / "items.parquet")
        arguments = PrepareArguments(
            str(folder / "rows.parquet"),
            str(folder / "out"),
            items=str(folder / "items.parquet"),
            item_attributes=insist or None,
        )
        prepare(arguments, SilentProgress())
        return Dataset.load(folder / "out")

    return build, Read()


CASES |= {
    "nested-texts": of_items(pa.array([["p", "q"], ["p"], [], None, ["q"], ["q"]])),
    "nested-vector": of_items(pa.array([[0.5, 1.0]] * 5 + [None], pa.list_(pa.float32()))),
    "nested-fixed": of_items(pa.array([[0.5, 1.0]] * 6, pa.list_(pa.float16(), 2))),
    "nested-unlike": of_items(pa.array([[0.5], [1.0, 2.0], None, [1.0], [1.0], [1.0]])),
    "nested-struct": of_items(pa.array([{"p": 1}] * 6)),
    "nested-map": of_items(pa.array([[("p", 1)]] * 6, pa.map_(pa.string(), pa.int64()))),
    "nested-lists": of_items(pa.array([[["p"]]] * 6)),
    "vectors-missing-number": of_items(pa.array([[0.5, float("inf")]] * 6)),
    "nested-named": of_items(pa.array([{"p": 1}] * 6), "c"),
}
ATTRIBUTES = {"nested-texts": "multi", "nested-vector": "vector", "nested-fixed": "vector"}


def lines() -> list[tuple[str, str, str]]:
    """(case, what comes of it, the rest of the cell) of every line of the table."""
    return LINE.findall(PAGE.read_text())


def test_every_case_is_a_line() -> None:
    names = [name for name, *_ in lines()]
    assert sorted(names) == sorted(CASES) and len(names) > 60


@pytest.mark.parametrize(("name", "outcome", "words"), lines(), ids=[name for name, *_ in lines()])
def test_it_comes_out_as_the_table_says(
    name: str,
    outcome: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "hugging-face" and importlib.util.find_spec("huggingface_hub"):
        pytest.skip("huggingface_hub is installed")
    if name.startswith("hugging-face-"):
        monkeypatch.setattr(hub, "load_reader", load_stand_in)
    build, expected = CASES[name]
    quoted = re.findall(r"`([^`]+)`", words)
    if outcome == "refused":
        assert quoted, "a refusal quotes what the user is told"
        with pytest.raises(Mistake) as told:
            found = build(tmp_path)
            read(str(found), expected, tmp_path)
        assert "\n" not in str(told.value)
        for each in quoted:
            assert each in str(told.value)
        return
    found = build(tmp_path)
    if isinstance(found, Dataset):
        check_attribute(found, ATTRIBUTES.get(name) if outcome == "read" else None, quoted)
        return
    read(str(found), expected, tmp_path)


def check_attribute(dataset: Dataset, kind: str | None, quoted: list[str]) -> None:
    """That column c is an attribute of a kind, or left out for the reason that is quoted."""
    left_out = dataset.source["attributes_left_out"]["item"]
    if kind is None:
        assert dataset.item_attributes == ()
        assert all(each in left_out["c"] for each in quoted) and quoted
        return
    assert [(each.name, each.kind) for each in dataset.item_attributes] == [("c", kind)]


def read(path: str, expected: Read, spill: Path) -> None:
    """Read a source as prepare does, and compare."""
    with connection(spill) as connected:
        source = read_source(connected, path, None, expected.columns, SideFiles())
        assert expected.note in " ".join(source.all_notes)
        load_raw(connected, source, path, expected.drop_null_ids)
        check_source(connected, source, path, None, None)
        check_rows(connected, source, expected)


def check_rows(connected: duckdb.DuckDBPyConnection, source: Source, expected: Read) -> None:
    rows = connected.execute("SELECT raw_user, raw_item FROM raw").fetchall()
    if expected.rows is not None:
        wanted = expected.rows
        if all(isinstance(value, int) for value, _ in wanted):
            rows = [(int(user), item) for user, item in rows]
        assert [(str(user), str(item)) for user, item in rows] == [
            (str(user), str(item)) for user, item in wanted
        ]
    if expected.times is not None:
        times = times_of(connected, "raw", "times")
        found = connected.execute(
            f"SELECT {times.expression} AS t FROM raw WHERE timestamp IS NOT NULL"
        ).fetchall()
        assert [moment for (moment,) in found] == expected.times
    if expected.context is not None:
        assert [x for (x,) in connected.execute("SELECT x0 FROM raw").fetchall()] == (
            expected.context
        )


@contextmanager
def connection(spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """One that finds no extension on this machine, whatever is installed there."""
    with closing(sql.connect(sql.Resources("1GB", 1, str(spill / "spill")))) as connected:
        connected.execute(f"SET extension_directory = {sql.text(str(spill / 'none'))}")
        yield connected


class WithExtension:
    """A connection on which an extension loads."""

    def __init__(self, connected: duckdb.DuckDBPyConnection) -> None:
        self._connected = connected

    def execute(self, statement: str, *more: Any) -> Any:
        if statement.startswith("LOAD "):
            return None
        return self._connected.execute(statement, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connected, name)


@pytest.mark.parametrize(
    ("log", "function"),
    [("_delta_log/0.json", "delta_scan"), ("metadata/v1.metadata.json", "iceberg_scan")],
)
def test_a_lake_is_read_by_the_extension(log: str, function: str, tmp_path: Path) -> None:
    """As a whole, by its folder: what of its files counts the log says, not we."""
    folder = lake(log)(tmp_path)
    with connection(tmp_path) as connected:
        connected.execute(
            f"CREATE MACRO {function}(path) AS TABLE "
            "SELECT path AS user, 'x' AS item, 3 AS timestamp"
        )
        given: Any = WithExtension(connected)
        source = read_source(given, str(folder), None, Columns(), SideFiles(items=str(folder)))
        load_raw(given, source, str(folder), False)
        with pytest.raises(Mistake, match=r"--format parquet, but .*: leave it out"):
            read_source(given, str(folder), "parquet", Columns(), SideFiles())
        assert source.format == function.removesuffix("_scan") and source.items is not None
        check_rows(connected, source, Read([(str(folder), "x")], times=[3]))
