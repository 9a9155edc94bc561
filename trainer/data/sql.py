"""DuckDB connection and quoting, shared by the steps of prepare."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from trainer.mistake import Mistake


@dataclass(frozen=True)
class Resources:
    """What DuckDB may use."""

    memory_limit: str
    """Bytes of buffers as DuckDB reads them, for example 4GB; beyond that it spills."""
    threads: int | None
    """Threads; None takes all cores."""
    spill: str
    """Folder for what does not fit in memory."""


def connect(resources: Resources, database: str = ":memory:") -> duckdb.DuckDBPyConnection:
    """A connection that keeps insertion order and spills to the given folder."""
    Path(resources.spill).mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(database)
    try:
        connection.execute(f"SET memory_limit = {text(resources.memory_limit)}")
    except duckdb.Error as error:
        connection.close()
        raise Mistake(
            f"--memory-limit {resources.memory_limit!r} is no size: write for example 4GB"
        ) from error
    connection.execute(f"SET temp_directory = {text(resources.spill)}")
    connection.execute("SET preserve_insertion_order = true")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar_print = false")
    if resources.threads is not None:
        connection.execute(f"SET threads = {resources.threads}")
    return connection


def bytes_of(size: str) -> int:
    """Bytes of a size as DuckDB reads it: `4GB` is 4e9, `4GiB` is 4 x 2^30."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)(i?)b?\s*", size.lower())
    if found is None:
        raise Mistake(f"--memory-limit {size!r} is no size: write for example 4GB")
    power = " kmgt".index(found[2] or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def name(identifier: str) -> str:
    """A quoted SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """A quoted SQL string."""
    return "'" + value.replace("'", "''") + "'"


def texts(values: Iterable[str]) -> str:
    """A list of quoted SQL strings, as read_parquet and read_csv take it."""
    return "[" + ", ".join(text(value) for value in values) + "]"


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
