"""Delta and Iceberg tables: folders whose own log says which of their files count.

DuckDB's extensions read them. What is not on the machine is not fetched: the user is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import duckdb

from trainer.base.mistake import Mistake
from trainer.files.filesystems import HUB, filesystem_of, reached
from trainer.sources import sql

LakeFormat = Literal["delta", "iceberg"]


@dataclass(frozen=True)
class Lake:
    """How a kind of tables is told and read."""

    words: str
    function: str
    """DuckDB's table function; the extension is called as the format."""


LAKES: dict[LakeFormat, Lake] = {
    "delta": Lake("a Delta table", "delta_scan"),
    "iceberg": Lake("an Iceberg table", "iceberg_scan"),
}


def lake_at(source: str) -> LakeFormat | None:
    """What kind of table a folder is; None: none. Nothing is asked of the hub (hub.py)."""
    if source.startswith(HUB):
        return None
    filesystem, path = filesystem_of(source)
    with reached(source):
        # Asked whether it is a folder, fsspec reads a file of a web server to its end.
        if filesystem.isfile(path) or not filesystem.isdir(path):
            return None
        if filesystem.isdir(f"{path}/_delta_log"):
            return "delta"
        if not filesystem.isdir(f"{path}/metadata"):
            return None
        names = filesystem.ls(f"{path}/metadata", detail=False)
    return "iceberg" if any(str(each).endswith(".metadata.json") for each in names) else None


def check_no_lake(source: str, files: Sequence[str]) -> None:
    """Raise Mistake where files are those of a table that lies below: some of them may be gone."""
    for file in files:
        parts = PurePath(file).parts
        if "_delta_log" in parts or file.endswith(".metadata.json"):
            log = "_delta_log" if "_delta_log" in parts else "metadata"
            if log in parts:
                table = PurePath(*parts[: parts.index(log)]).name
                raise Mistake(
                    f"{source} holds a Delta or Iceberg table, {table}: name the table's folder"
                )


def lake_relation(
    connection: duckdb.DuckDBPyConnection, format: LakeFormat, folder: str, label: str
) -> str:
    """SQL after FROM that reads a table; raises Mistake where DuckDB's extension is not there."""
    lake = LAKES[format]
    try:
        connection.execute(f"LOAD {format}")
    except duckdb.Error as error:
        raise Mistake(
            f"{label} is {lake.words}, which DuckDB reads by its extension {format!r}: it is not "
            f'on this machine. Install it once, where there is a network: python -c "import '
            f"duckdb; duckdb.sql('INSTALL {format}')\"; or write the table as plain Parquet"
        ) from error
    return f"{lake.function}({sql.text(folder)})"
