"""What `prepare --look` says of columns: types, roles, how many values, what is missing, ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import duckdb

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet
from trainer.prepare.features.attributes import NOTHING
from trainer.prepare.features.column_types import ColumnType, as_asked
from trainer.sources import sql
from trainer.sources.columns import Table
from trainer.sources.kinds import (
    MAX_NUMBER_CATEGORIES,
    TOO_MANY,
    Kind,
    is_nearly_unique,
    settle,
)
from trainer.sources.text_files import readable

ROWS_LOOKED_AT = 1_000_000
VECTORS_LOOKED_AT = 1000
"""Rows whose lists of numbers are looked at: a million of them may be gigabytes."""
FEW_ROWS = 1000
LONGEST_VALUE = 24
NOT_READ = "not read"
AS_TYPES = {
    "BIGINT": "TRY_CAST({0} AS BIGINT) = TRY_CAST({0} AS DOUBLE)",  # 0.5 would be rounded
    "DOUBLE": "TRY_CAST({0} AS DOUBLE) IS NOT NULL",
    "TIMESTAMP": "TRY_CAST({0} AS TIMESTAMP) IS NOT NULL",
}
"""What a text may be, and the condition that it is."""
RANGED = ("INT", "FLOAT", "DOUBLE", "DECIMAL", "DATE", "TIME", "VARCHAR", "BOOL", "UUID", "ENUM")
"""Types whose least and largest values say something."""


@dataclass(frozen=True)
class Look:
    """A table and what is wanted of it."""

    table: Table
    name: str
    """Of DuckDB's table that holds what is looked at; vectors are not in it."""
    roles: Mapping[str, str]
    """By column, where it has one."""
    attributes: tuple[str, ...] | None
    """Columns that become attributes; None: all without a role."""
    types: Mapping[str, ColumnType]
    """That the user set, by column."""
    title: str = ""

    def show(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """Print a line a column; the columns that nothing reads."""
        sheet = Sheet(
            "column",
            "type",
            "role",
            "values",
            "missing",
            "from",
            "to",
            numbers=("values", "missing"),
            title=self.title,
        )
        kinds = {column: self.table.kind_of(column) for column in self.table.types}
        unread = []
        with readable(self.table.label, self.table.format):
            self._load(connection, kinds)
            better = _better_types(connection, self.name)
            facts = _facts(connection, self.name, better)
            for column, kind in kinds.items():
                role = self._role(connection, column, kind)
                unread += [column] if role == NOT_READ else []
                of_type = better.get(column, self.table.types[column]).lower()
                sheet.add(column, of_type, role, *facts.get(column, ()))
            connection.execute(f"DROP TABLE {self.name}")
        sheet.print()
        return unread

    def _load(self, connection: duckdb.DuckDBPyConnection, kinds: Mapping[str, Kind]) -> None:
        columns = [
            sql.name(column)
            for column, kind in kinds.items()
            if kind.form != "vector" or not self.table.is_typed
        ]
        connection.execute(
            f"CREATE TABLE {self.name} AS SELECT {', '.join(columns) or 'NULL AS nothing'} "
            f"FROM {self.table.relation(nulls=True)} LIMIT {ROWS_LOOKED_AT}"
        )

    def _role(self, connection: duckdb.DuckDBPyConnection, column: str, kind: Kind) -> str:
        plain = column.split(":")[0]
        if column in self.roles and self.roles[column] != "context":
            return self.roles[column]
        wanted = self.attributes is None or plain in self.attributes
        if not wanted and column not in self.roles:
            return NOT_READ
        if self.types.get(plain) == "leave-out":
            return "left out as asked"
        try:
            kind = as_asked(kind, self.types.get(plain), column)
        except Mistake as mistake:
            return f"left out: {mistake}"
        found = self._becomes(connection, column, kind, self.types.get(plain))
        return f"context: {found}" if column in self.roles else found

    def _becomes(
        self,
        connection: duckdb.DuckDBPyConnection,
        column: str,
        kind: Kind,
        set_to: ColumnType | None,
    ) -> str:
        """What type it becomes, or why it is left out; as `attributes.py` has it."""
        quoted = sql.name(column)
        if kind.form == "vector" and self.table.is_typed:
            return self._vector(connection, column, kind)
        values = f"(SELECT DISTINCT {quoted} FROM {self.name})"
        kind = settle(connection, values, quoted, kind)
        if kind.form == "none":
            return f"left out: {kind.reason}"
        if kind.form == "vector":
            return self._vector(connection, column, kind)
        if not sql.number(connection, f"SELECT count({quoted}) FROM {self.name}"):
            return f"left out: {NOTHING}"
        if set_to is None and is_nearly_unique(connection, self.name, quoted, kind):
            return f"left out: {TOO_MANY}"
        if kind.form in ("number", "time") and not kind.insist:
            distinct = sql.number(
                connection, f"SELECT approx_count_distinct({quoted}) FROM {self.name}"
            )
            kind = replace(kind, form="text") if distinct <= MAX_NUMBER_CATEGORIES else kind
        if kind.form in ("number", "time"):
            return "buckets" if set_to == "buckets" else kind.form
        return "categories" if kind.form in ("multi", "list") else "category"

    def _vector(self, connection: duckdb.DuckDBPyConnection, column: str, kind: Kind) -> str:
        value = kind.vector(self.table.value(column))
        widths = connection.execute(
            f"SELECT DISTINCT len(value) FROM (SELECT {value} AS value FROM "
            f"{self.table.relation(nulls=False)} LIMIT {VECTORS_LOOKED_AT}) WHERE len(value) > 0"
        ).fetchall()
        if len(widths) != 1:
            return "left out: lists of several lengths" if widths else f"left out: {NOTHING}"
        return f"vector of {widths[0][0]}"


def _better_types(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """Types of text columns whose values are all numbers or times.

    A text that is no number takes long to be refused: the first rows rule most types out.
    """
    found = {}
    for name, of_type in sql.columns_of(connection, table).items():
        if of_type != "VARCHAR":
            continue
        value = sql.name(name)
        few = f"(SELECT {value} FROM {table} LIMIT {FEW_ROWS})"
        all_values = f"(SELECT DISTINCT {value} FROM {table})"
        for better, fit in AS_TYPES.items():
            fits = f"count({value}) = count(*) FILTER ({fit.format(value)})"
            if (
                sql.one(connection, f"SELECT {fits} FROM {few}")[0]
                and (
                    sql.one(connection, f"SELECT count({value}) > 0 AND {fits} FROM {all_values}")[
                        0
                    ]
                )
            ):
                found[name] = better
                break
    return found


def _facts(
    connection: duckdb.DuckDBPyConnection, table: str, better: Mapping[str, str]
) -> dict[str, tuple[str, str, str, str]]:
    """How many values, what share is missing, and the least and the largest, by column."""
    types = sql.columns_of(connection, table)
    asked = []
    for name, of_type in types.items():
        value = f"CAST({sql.name(name)} AS {better.get(name, of_type)})"
        ranged = any(word in of_type for word in RANGED) and "[" not in of_type
        ends = [f"min({value})", f"max({value})"] if ranged else ["NULL", "NULL"]
        asked += [f"approx_count_distinct({value})", f"count({value})", *ends]
    rows, *found = sql.one(connection, f"SELECT count(*), {', '.join(asked)} FROM {table}")
    facts = {}
    for place, name in enumerate(types):
        distinct, filled, low, high = found[4 * place : 4 * place + 4]
        missing = 100 * (rows - filled) / max(rows, 1)
        facts[name] = (f"~{distinct:,}", f"{missing:.2g} %", _short(low), _short(high))
    return facts


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
