"""What `prepare --look` says of columns: types, roles, how many values, what is missing, ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet
from trainer.prepare.features.attributes import NOTHING
from trainer.prepare.features.column_types import ColumnType, as_asked
from trainer.sources import sql
from trainer.sources.columns import Table
from trainer.sources.kinds import (
    NEARLY_UNIQUE,
    TOO_MANY,
    Kind,
    is_nearly_unique,
    settle,
    with_few_as_text,
)
from trainer.sources.text_files import readable

ROWS_LOOKED_AT = 1_000_000
VECTORS_LOOKED_AT = 1000
"""Rows whose lists of numbers are looked at: a million of them may be gigabytes."""
FEW_ROWS = 1000
LONGEST_VALUE, LONGEST_TEXT = 24, 12
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
        kinds = {column: self.table.kind_of(column) for column in self.table.types}
        unread, lines = [], []
        with readable(self.table.label, self.table.format):
            is_table = self._load(connection, kinds)
            texts = _different_texts(connection, self.name)
            better = _better_types(connection, texts)
            facts = _facts(connection, self.name, better)
            for column, kind in kinds.items():
                role = self._role(connection, column, kind, texts.get(column), facts.get(column))
                unread += [column] if role == NOT_READ else []
                of_type = better.get(column, self.table.types[column]).lower()
                lines.append((column, of_type, role, facts.get(column)))
            for table in texts.values():
                connection.execute(f"DROP TABLE {table}")
            connection.execute(f"DROP {'TABLE' if is_table else 'VIEW'} {self.name}")
        self._print(lines)
        return unread

    def _print(self, lines: Sequence[tuple[str, str, str, ColumnFacts | None]]) -> None:
        """A line a column; what is missing only where something is."""
        some = any(facts is not None and facts.missing for *_, facts in lines)
        headings = ("column", "type", "role", "values", *(["missing"] if some else []), "range")
        sheet = Sheet(
            *headings, numbers=("values", "missing"), whole=("column", "role"), title=self.title
        )
        for *words, facts in lines:
            if facts is None:
                sheet.add(*words)
                continue
            missing = [f"{100 * facts.missing:.2g} %"] if some else []
            sheet.add(*words, f"~{_rounded(facts.distinct)}", *missing, facts.range)
        sheet.print()

    def _load(self, connection: duckdb.DuckDBPyConnection, kinds: Mapping[str, Kind]) -> bool:
        """What is looked at under its name; True: as a table, for text is to be parsed once."""
        columns = [
            sql.name(column)
            for column, kind in kinds.items()
            if kind.form != "vector" or not self.table.is_typed
        ]
        limit = limit_of(connection, self.table.is_typed, self.table.relation(nulls=True))
        is_table = limit != ""
        connection.execute(
            f"CREATE {'TABLE' if is_table else 'VIEW'} {self.name} AS "
            f"SELECT {', '.join(columns) or 'NULL AS nothing'} "
            f"FROM {self.table.relation(nulls=True)}{limit}"
        )
        return is_table

    def _role(
        self,
        connection: duckdb.DuckDBPyConnection,
        column: str,
        kind: Kind,
        texts: str | None,
        facts: ColumnFacts | None,
    ) -> str:
        """texts: of a text column, the table of its different values."""
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
        found = self._becomes(connection, column, kind, texts, facts)
        return f"context: {found}" if column in self.roles else found

    def _becomes(
        self,
        connection: duckdb.DuckDBPyConnection,
        column: str,
        kind: Kind,
        texts: str | None,
        facts: ColumnFacts | None,
    ) -> str:
        """What type it becomes, or why it is left out; as `attributes.py` has it."""
        quoted, set_to = sql.name(column), self.types.get(column.split(":")[0])
        if kind.form == "vector" and self.table.is_typed:
            return self._vector(connection, column, kind)
        if texts is not None:
            kind = settle(connection, texts, quoted, kind)
        if kind.form == "none":
            return f"left out: {kind.reason}"
        if kind.form == "vector":
            return self._vector(connection, column, kind)
        if facts is None or facts.missing == 1:
            return f"left out: {NOTHING}"
        many = kind.form != "text" or facts.distinct > NEARLY_UNIQUE / 2
        if set_to is None and many and is_nearly_unique(connection, self.name, quoted, kind):
            return f"left out: {TOO_MANY}"
        kind = with_few_as_text(connection, self.name, quoted, kind)
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


def limit_of(connection: duckdb.DuckDBPyConnection, is_typed: bool, relation: str) -> str:
    """SQL that keeps to the rows that are looked at, if there are more: DuckDB reads several times
    slower under a limit. is_typed: files say how many rows they have."""
    if is_typed:
        rows = sql.number(connection, f"SELECT count(*) FROM {relation}")
        if rows <= ROWS_LOOKED_AT:
            return ""
    return f" LIMIT {ROWS_LOOKED_AT}"


def _different_texts(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """By text column, a table of its different values."""
    found: dict[str, str] = {}
    for name, of_type in sql.columns_of(connection, table).items():
        if of_type == "VARCHAR":
            found[name] = f"texts_{len(found)}"
            connection.execute(
                f"CREATE TABLE {found[name]} AS SELECT DISTINCT {sql.name(name)} FROM {table}"
            )
    return found


def _better_types(
    connection: duckdb.DuckDBPyConnection, texts: Mapping[str, str]
) -> dict[str, str]:
    """Types of text columns whose values are all numbers or times.

    A text that is no number takes long to be refused: some values rule most types out.

    texts: as `_different_texts` has them.
    """
    found = {}
    for name, table in texts.items():
        value = sql.name(name)
        few = f"(SELECT {value} FROM {table} LIMIT {FEW_ROWS})"
        for better, fit in AS_TYPES.items():
            fits = f"count({value}) > 0 AND count({value}) = count(*) FILTER ({fit.format(value)})"
            if all(sql.one(connection, f"SELECT {fits} FROM {each}")[0] for each in (few, table)):
                found[name] = better
                break
    return found


@dataclass(frozen=True)
class ColumnFacts:
    """What the values of a column are."""

    distinct: int
    """About so many."""
    missing: float
    """Share of the rows."""
    range: str
    """Least and largest; empty where they say nothing."""


def _facts(
    connection: duckdb.DuckDBPyConnection, table: str, better: Mapping[str, str]
) -> dict[str, ColumnFacts]:
    """By column: one query."""
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
        distinct, filled, *ends = found[4 * place : 4 * place + 4]
        words = "" if ends[0] is None else " to ".join(map(_short, ends))
        facts[name] = ColumnFacts(distinct, (rows - filled) / max(rows, 1), words)
    return facts


def _rounded(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    longest = LONGEST_TEXT if isinstance(value, str) else LONGEST_VALUE
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
