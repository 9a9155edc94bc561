"""DuckDB: connections, quoting, the one reader of files, and its errors in one line.

Nothing of a file or of the command line reaches SQL but through `name`, `text` and `literal`, and
no path but through `parquet`, `csv` and `target`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from trainer.base.byte_sizes import bytes_of
from trainer.base.mistake import Mistake
from trainer.base.ranges import MOST_THREADS
from trainer.files.filesystems import HUB, filesystem_of, is_uri

MEMORY_FLAG = "--memory-limit"
LEAST_MEMORY = 64_000_000
MOST_MEMORY = 1 << 60
SHARED_MEMORY = "2GB"
"""Of a connection that other processes of the machine have their like of."""
OPEN: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
"""Connections that may be at work; closed ones too, until they are forgotten."""
MORE_MEMORY = "raise --memory-limit, or lower --threads"
INTERRUPTED = "Query interrupted"
FULL_DISK = re.compile("no space left|quota exceeded|max_temp_directory_size|file too large", re.I)

Option = str | int | Sequence[str]
"""A value of an option of read_csv."""


class DatabaseError(RuntimeError):
    """What DuckDB could not do, in one line."""


@dataclass(frozen=True)
class Resources:
    """What DuckDB may use."""

    memory_limit: str
    """Bytes of buffers, for example 4GB; beyond that it spills."""
    threads: int | None
    """Threads; None takes all cores."""
    spill: str
    """Folder for what does not fit in memory."""


def connect(resources: Resources, database: str = ":memory:") -> duckdb.DuckDBPyConnection:
    """A connection that keeps insertion order and spills to the given folder."""
    Path(resources.spill).mkdir(parents=True, exist_ok=True)
    settings: dict[str, str | int | bool] = {
        "memory_limit": f"{bytes_of(resources.memory_limit, MEMORY_FLAG)}B",
        "temp_directory": target(resources.spill, quoted=False),
        "preserve_insertion_order": True,
        "TimeZone": "UTC",
        "autoinstall_known_extensions": False,
    }
    if resources.threads is not None:
        settings["threads"] = resources.threads
    with faults("opening DuckDB"):
        connection = duckdb.connect(database)
        for setting, value in settings.items():
            connection.execute(f"SET {setting} = {literal(value)}")
        set_progress(connection, "enable_progress_bar_print", False)
    OPEN.add(connection)
    return connection


def set_progress(connection: duckdb.DuckDBPyConnection, setting: str, value: bool) -> None:
    """Set one of DuckDB's settings of progress, where it can be set.

    In a notebook without ipywidgets DuckDB refuses all of them: it neither draws nor counts there.
    """
    with suppress(duckdb.InvalidInputException):
        connection.execute(f"SET {setting} = {literal(value)}")


@contextmanager
def in_memory(threads: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection of one of several processes: little memory, spilling to a temporary folder."""
    remedy = "free some memory, or start fewer workers"
    with (
        tempfile.TemporaryDirectory(prefix="tandem-") as spill,
        faults("reading the dataset", remedy),
        closing(connect(Resources(SHARED_MEMORY, threads, spill))) as connection,
    ):
        yield connection


@contextmanager
def faults(doing: str, remedy: str = MORE_MEMORY) -> Iterator[None]:
    """Have DuckDB's errors be this project's: Ctrl-C, the user's mistake, or one line.

    remedy: of too little memory.
    """
    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.Error as error:
        if FULL_DISK.search(str(error)):
            raise Mistake(
                f"{doing}: the disk is full ({first_line(error)}): make room there, or name "
                "another OUT, or another folder for temporary files with --scratch"
            ) from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise Mistake(
                f"{doing}: memory does not suffice ({first_line(error)}): {remedy}"
            ) from error
        raise DatabaseError(f"{doing}: {first_line(error)}") from error
    except RuntimeError as error:
        if str(error) == INTERRUPTED:
            raise KeyboardInterrupt from None
        raise


def first_line(error: Exception) -> str:
    """The first line of an error's message, without what DuckDB calls its kind."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    wrapped = re.search(r'"exception_message":("(?:[^"\\]|\\.)*")', line)  # of DuckDB's own thread
    line = line if wrapped is None else str(json.loads(wrapped[1]))
    return re.sub(r"^[A-Z][A-Za-z ]{0,40} Error: ", "", line)


def check_resources(memory_limit: str, threads: int | None) -> None:
    """Raise Mistake on limits that DuckDB cannot work within."""
    if not LEAST_MEMORY <= bytes_of(memory_limit, MEMORY_FLAG) <= MOST_MEMORY:
        raise Mistake(
            f"{MEMORY_FLAG} {memory_limit} must be from {LEAST_MEMORY // 1_000_000}MB to "
            f"{MOST_MEMORY >> 50} PiB: write for example 4GB"
        )
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise Mistake(f"--threads {threads} must be from 1 to {MOST_THREADS:,}")


def name(identifier: str) -> str:
    """A quoted SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """A quoted SQL string."""
    return "'" + value.replace("'", "''") + "'"


def literal(value: float | str | bool | None) -> str:
    """A value as SQL: quoted text, a number, true, false or NULL."""
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).lower()
        case int():
            return str(int(value))
        case float():
            return f"{value!r}::DOUBLE" if math.isfinite(value) else f"'{value}'::DOUBLE"
        case str():
            return text(value)
    raise TypeError(f"{value!r} is no value for SQL")


def parquet(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[str | Path],
    by_name: bool = False,
    places: bool = False,
    folders: bool = False,
) -> str:
    """SQL after FROM that reads these Parquet files, and no others.

    by_name: files may lack columns of the others, which are NULL there.
    places: with the columns `filename` and `file_row_number`.
    folders: with the columns in names of folders, as text.
    """
    return (
        f"read_parquet({literal_files(connection, files)}, {_hive(folders)}, "
        f"union_by_name={literal(by_name)}, filename={literal(places)}, "
        f"file_row_number={literal(places)})"
    )


def csv(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[str | Path],
    columns: Sequence[str],
    options: Mapping[str, Option],
    folders: bool = False,
) -> str:
    """SQL after FROM that reads these text files, and no others, all columns as text.

    options: of read_csv, besides those that are the same for all. folders: as `parquet` has it.
    """
    types = ", ".join(f"{text(each)}: 'VARCHAR'" for each in columns)
    given = "".join(
        f", {option}={literal(value) if isinstance(value, str | int) else texts(value)}"
        for option, value in options.items()
        if isinstance(value, str | int) or value  # of no columns, DuckDB wants no list
    )
    return (
        f"read_csv({literal_files(connection, files)}, columns={{{types}}}, auto_detect=false, "
        f"{_hive(folders)}{given})"
    )


def _hive(folders: bool) -> str:
    return f"hive_partitioning={literal(folders)}, hive_types_autocast=false"


def texts(values: Iterable[str]) -> str:
    """A list of quoted SQL strings."""
    return "[" + ", ".join(text(value) for value in values) + "]"


def literal_files(connection: duckdb.DuckDBPyConnection, files: Sequence[str | Path]) -> str:
    """A list of files that DuckDB takes for these, and not for patterns of others."""
    assert files, "DuckDB reads at least one file"
    for each in files:
        if is_uri(each) and not _reads_itself(connection, str(each)):
            filesystem, _ = filesystem_of(each)
            protocol = filesystem.protocol
            protocols = {protocol} if isinstance(protocol, str) else set(protocol)
            if not protocols & set(connection.list_filesystems()):
                connection.register_filesystem(filesystem)
    return texts(_literal_path(each) for each in files)


def _reads_itself(connection: duckdb.DuckDBPyConnection, uri: str) -> bool:
    """Whether DuckDB has its own reader of a URI: that of Hugging Face, where it is loaded."""
    loaded = connection.list_filesystems()
    return uri.startswith(HUB) and ("HuggingFaceFileSystem" in loaded or "hf" in loaded)


def _literal_path(path: str | Path) -> str:
    location = str(path) if is_uri(path) else str(Path(path).absolute())
    escaped = re.sub(r"[*?\[]", r"[\g<0>]", location)
    if "\\" in location and escaped != location:
        raise Mistake(
            f"{path} has a backslash beside * ? or [ in its path, where DuckDB cannot open it: "
            "rename it"
        )
    return escaped


def target(path: str | Path, quoted: bool = True) -> str:
    """A local path that DuckDB writes to, as an absolute path; quoted for SQL."""
    location = str(Path(path).absolute())
    assert "\\" not in location, "check_folder was not asked"
    return text(location) if quoted else location


def check_folder(folder: Path, letters: str, remedy: str) -> None:
    """Raise Mistake where a folder's path has letters that DuckDB reads as something else."""
    for letter in letters:
        if letter in str(folder.absolute()):
            raise Mistake(
                f"{folder} has {letter} in its path, where DuckDB cannot keep files: {remedy}"
            )


def one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The only row of a query's result."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


def number(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The only value of a query's result, an integer."""
    return int(one(connection, query)[0])


def columns_of(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """Column names of a table or table function, in order, with their DuckDB types."""
    rows = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    return {str(row[0]): str(row[1]) for row in rows}


def near(wanted: str, names: Iterable[str]) -> str:
    """`Did you mean ...? ` for the names like the wanted one, then all there are."""
    known = list(names)
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(wanted.lower(), by_lower, n=3, cutoff=0.5)
    guess = f"Did you mean {' or '.join(by_lower[each] for each in close)}? " if close else ""
    return f"{guess}There are: {', '.join(known)}"
