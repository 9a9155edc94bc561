"""Tables of items and users beside the interactions: found, named by the user, and read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import duckdb

from trainer.sources.columns import Columns, Table, required
from trainer.sources.hub import files_at
from trainer.sources.lakes import lake_at
from trainer.sources.sources import ITEM_NAMES, USER_NAMES, SideTable, Source
from trainer.sources.text_files import suffix_of


@dataclass(frozen=True)
class SideFiles:
    """Side tables that the user named."""

    items: str | None = None
    users: str | None = None


def with_side_files(
    connection: duckdb.DuckDBPyConnection, source: Source, columns: Columns, side: SideFiles
) -> Source:
    """The source with the side tables that the user named in place of those found beside it."""
    items, users = source.items, source.users
    if side.items is not None:
        items = _side_file(connection, side.items, "item", columns, source.columns.get("item"))
    if side.users is not None:
        users = _side_file(connection, side.users, "user", columns, source.columns.get("user"))
    return replace(source, items=items, users=users)


def _side_file(
    connection: duckdb.DuckDBPyConnection,
    path: str,
    which: str,
    columns: Columns,
    own: str | None,
) -> SideTable:
    """A named side file: its id column is called as in the interactions, or by a usual name."""
    format, files = side_files(connection, path, which)
    known = columns.known if own is None else {**columns.known, which: own.split(":")[0]}
    return side_table(connection, format, files, path, which, replace(columns, known=known))


def side_files(
    connection: duckdb.DuckDBPyConnection, path: str, which: str
) -> tuple[str, list[str]]:
    """The format of a named side file, by its name, and its files."""
    lake = lake_at(path)
    if lake is not None:
        return lake, [path]
    files = files_at(connection, path, f"--{which}s")
    by_suffix = {".parquet": "parquet", ".item": "recbole", ".user": "recbole"}
    return by_suffix.get(suffix_of(files[0]), "csv"), files


def side_table(
    connection: duckdb.DuckDBPyConnection,
    format: str,
    files: list[str],
    label: str,
    which: str,
    columns: Columns,
) -> SideTable:
    table = Table(connection, format, files, label)
    wanted = columns.item if which == "item" else columns.user
    usual = columns.usual(which, ITEM_NAMES if which == "item" else USER_NAMES)
    id_column = required(wanted, table.types, usual, f"--{which}-column", label)
    kinds = {column: table.kind_of(column) for column in table.types if column != id_column}
    id_value = table.value(id_column)
    vectors = {
        column: kind.vector(table.value(column))
        for column, kind in kinds.items()
        if kind.form == "vector" and table.is_typed
    }
    values = {column: "NULL" if column in vectors else table.value(column) for column in kinds}
    relation = table.relation(nulls=False)
    return SideTable(
        select=side_select(id_value, values, relation),
        select_ids=side_select(id_value, {}, table.relation(nulls=True)),
        id_column=id_column,
        kinds=kinds,
        label=label,
        notes=table.notes,
        table=table,
        vectors={
            column: f"SELECT {id_value} AS raw, {value} AS value FROM {relation}"
            for column, value in vectors.items()
        },
    )


def side_select(id_value: str, values: dict[str, str], relation: str) -> str:
    """SELECT of `raw` and the columns as c0, c1, ...: names of the user's may be any."""
    columns = "".join(f", {value} AS c{place}" for place, value in enumerate(values.values()))
    return f"SELECT {id_value} AS raw{columns} FROM {relation}"
