"""Attributes of items and users as vocabularies: text, lists and numbers to dense rows.

Row 0 of every vocabulary is missing or unknown; the others go by falling count, then by value.
Numbers and times of many values become buckets of equal counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import duckdb

from trainer.base.mistake import Mistake
from trainer.data.schema import RESERVED, Attribute, AttributeKind
from trainer.sources import sql
from trainer.sources.kinds import (
    MAX_NUMBER_CATEGORIES,
    TOO_MANY,
    Kind,
    bucket_names,
    is_nearly_unique,
    settle,
    values_of,
)
from trainer.sources.sources import SideTable

MAX_VALUES = 100_000
"""Rows of a vocabulary; rarer values are unknown."""
BUCKETS = 16
NOTHING = "holds no value"


@dataclass(frozen=True)
class Encoded:
    """An attribute and the table (raw, value) that holds it for each row of the side table."""

    attribute: Attribute
    table: str | None
    """None where the side table lacks it: a dataset being extended has it."""


@dataclass(frozen=True)
class Wanted:
    """Which columns of a side table become attributes."""

    names: tuple[str, ...] | None
    """As the user named them; None for all."""
    title: str | None
    """Column kept as the title, an attribute only if it is named."""
    categories: tuple[str, ...]
    """Columns whose numbers are categories."""
    flag: str
    """The command's flag, for messages."""


def encode_side(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    table: SideTable,
    wanted: Wanted,
    known: dict[str, Attribute] | None,
    tell: Callable[[str], None],
) -> tuple[list[Encoded], dict[str, str]]:
    """Encode the wanted columns of table `side_<side>`; also the columns left out, with reasons.

    Fills table `vocabulary` (side, name, row, value, count). `known` has the attributes of a
    dataset being extended, whose vocabulary is in `vocabulary` and keeps its rows.
    """
    columns = {each.split(":")[0]: each for each in table.kinds}
    for name in wanted.names or ():
        if name not in columns:
            raise Mistake(
                f"{table.label} has no column {name!r} ({wanted.flag}). {sql.near(name, columns)}"
            )
    names = wanted.names
    if names is None:
        names = tuple(each for each in columns if columns[each] != wanted.title)
    encoded: list[Encoded] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(names):
        own_name = _own_name(name, [each.attribute.name for each in encoded])
        if known is not None and own_name not in known:
            left_out[name] = "is no attribute of the extended dataset"
            continue
        kind, insist = table.kinds[columns[name]], wanted.names is not None
        if name in wanted.categories and kind.form in ("guess", "number", "time"):
            kind, insist = replace(kind, form="text"), True
        encoder = _Encoder(connection, side, own_name, table.column(columns[name]))
        target = f"encoded_{side}_{len(encoded)}"
        found = encoder.encode(kind, None if known is None else known[own_name], target, insist)
        if isinstance(found, Encoded):
            encoded.append(found)
            _tell_of_buckets(found.attribute, side, name, tell)
        elif wanted.names is None and name not in wanted.categories:
            left_out[name] = found
        else:
            flag = "--category" if wanted.names is None else wanted.flag
            raise Mistake(f"{table.label}: column {name!r} ({flag}) {found}: leave it out")
    there = {each.attribute.name for each in encoded}
    encoded.extend(Encoded(each, None) for name, each in (known or {}).items() if name not in there)
    return encoded, left_out


def check_categories(names: tuple[str, ...], tables: Sequence[SideTable | None]) -> None:
    """Raise Mistake where a column named by --category is in no file."""
    known = [each.split(":")[0] for table in tables if table is not None for each in table.kinds]
    for name in names:
        if name not in known:
            raise Mistake(
                f"--category {name}: no file of items or users has such a column. "
                + (sql.near(name, known) if known else "Give --items or --users FILE")
            )


def _own_name(name: str, taken: Collection[str]) -> str:
    """The attribute's name: the column's, unless a table of the dataset has it already.

    DuckDB's names are the same whatever their case.
    """
    used = {*RESERVED, *(each.lower() for each in taken)}
    while name.lower() in used:
        name += "_"
    return name


def _tell_of_buckets(
    attribute: Attribute, side: str, column: str, tell: Callable[[str], None]
) -> None:
    if attribute.boundaries:
        tell(
            f"{side} column {column}: {attribute.of}s in {attribute.num_values - 1} buckets; "
            f"--category {column} makes each value a category"
        )


@dataclass(frozen=True)
class _Encoder:
    """One column of table `side_<side>`, on its way to an attribute."""

    connection: duckdb.DuckDBPyConnection
    side: str
    name: str
    column: str

    @property
    def rows(self) -> str:
        return f"side_{self.side}"

    @property
    def own(self) -> str:
        """SQL condition: rows of `vocabulary` that are the attribute's."""
        return f"side = {sql.text(self.side)} AND name = {sql.text(self.name)}"

    def encode(
        self, kind: Kind, known: Attribute | None, target: str, insist: bool
    ) -> Encoded | str:
        """Make table `target` (raw, value) and the vocabulary; or why the column is left out.

        insist: also where nearly every value is another one.
        """
        kind = settle(self.connection, self.rows, self.column, kind)
        if kind.form == "none":
            return kind.reason
        if known is not None:
            kind = self._as_known(kind, known)
        elif not insist and is_nearly_unique(self.connection, self.rows, self.column, kind):
            return TOO_MANY
        elif kind.form in ("number", "time") and not kind.buckets and self._is_short(kind):
            kind = replace(kind, form="text")
        if kind.form in ("number", "time"):
            attribute = self._buckets(kind, known, target)
        else:
            attribute = self._categories(kind, target)
        filled = "len(value) > 0" if attribute.kind == "multi" else "value > 0"
        if (
            known is None
            and not self.connection.execute(
                f"SELECT 1 FROM {target} WHERE {filled} LIMIT 1"
            ).fetchone()
        ):
            self.connection.execute(f"DROP TABLE {target}")
            self.connection.execute(f"DELETE FROM vocabulary WHERE {self.own}")
            return NOTHING
        return Encoded(attribute, target)

    def _is_short(self, kind: Kind) -> bool:
        distinct = sql.number(
            self.connection, f"SELECT count(DISTINCT {self.column}) FROM {self.rows}"
        )
        return distinct <= MAX_NUMBER_CATEGORIES

    def _as_known(self, kind: Kind, known: Attribute) -> Kind:
        """The kind that gives what the extended dataset's attribute holds."""
        if known.boundaries:
            if kind.form not in ("number", "time"):
                kind = Kind("number")
            if kind.form != known.of:
                raise Mistake(
                    f"column {self.name!r} of the new {self.side}s holds {kind.form}s, the "
                    f"extended dataset's {known.of}s: give it as before"
                )
            return kind
        several = kind.form in ("multi", "list")
        if known.kind == "multi" and not several:
            return Kind("multi", "|")
        if known.kind == "single" and several:
            raise Mistake(
                f"column {self.name!r} of the new {self.side}s holds several values a row, the "
                "extended dataset's one: give it as before"
            )
        return kind if several else replace(kind, form="text")

    def _categories(self, kind: Kind, target: str) -> Attribute:
        shape: AttributeKind = "multi" if kind.form in ("multi", "list") else "single"
        self.connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE given_values AS
            SELECT DISTINCT raw, nullif(trim(CAST(each AS VARCHAR)), '') AS value
            FROM (SELECT raw, {values_of(self.column, kind)} AS each FROM {self.rows})"""
        )
        num_values = self._extend_vocabulary()
        if shape == "single":
            row = "any_value(coalesce(v.row, 0))::BIGINT"
        else:
            row = "list(v.row ORDER BY v.row) FILTER (v.row IS NOT NULL)"
        self.connection.execute(
            f"""CREATE TEMP TABLE {target} AS SELECT g.raw, {row} AS value FROM given_values g
            LEFT JOIN (SELECT row, value FROM vocabulary WHERE {self.own} AND row > 0) v
                ON v.value = g.value GROUP BY g.raw"""
        )
        return Attribute(self.name, shape, num_values)

    def _extend_vocabulary(self) -> int:
        """Append the values of `given_values` that the vocabulary lacks; its size after."""
        side, name = sql.text(self.side), sql.text(self.name)
        largest = self._largest_row()
        if largest < 0:
            self.connection.execute(
                f"""INSERT INTO vocabulary SELECT {side}, {name}, 0, NULL,
                (SELECT count(*) FROM given_values WHERE value IS NULL)"""
            )
            largest = 0
        self.connection.execute(
            f"""INSERT INTO vocabulary
            SELECT {side}, {name}, {largest} + row_number() OVER (ORDER BY count DESC, value),
                value, count
            FROM (SELECT value, count(*) AS count FROM given_values
                WHERE value IS NOT NULL
                    AND value NOT IN (SELECT value FROM vocabulary WHERE {self.own} AND row > 0)
                GROUP BY value ORDER BY count DESC, value
                LIMIT {max(MAX_VALUES - 1 - largest, 0)})"""
        )
        return self._largest_row() + 1

    def _largest_row(self) -> int:
        return sql.number(
            self.connection, f"SELECT coalesce(max(row), -1) FROM vocabulary WHERE {self.own}"
        )

    def _buckets(self, kind: Kind, known: Attribute | None, target: str) -> Attribute:
        number = kind.number(self.column)
        bounds = self._bounds(number) if known is None else known.boundaries
        listed = "[" + ", ".join(map(sql.literal, bounds)) + "]::DOUBLE[]"
        self.connection.execute(
            f"""CREATE TEMP TABLE {target} AS SELECT raw, CASE WHEN isfinite(number)
                THEN 1 + len(list_filter({listed}, lambda bound: bound <= number)) ELSE 0
                END::BIGINT AS value FROM (SELECT raw, {number} AS number FROM {self.rows})"""
        )
        names = ["", *bucket_names(bounds, kind)]
        if self._largest_row() < 0:
            for row, value in enumerate(names):
                self.connection.execute(
                    f"""INSERT INTO vocabulary SELECT {sql.text(self.side)}, {sql.text(self.name)},
                    {row}, {sql.literal(value or None)}, count(*) FROM {target}
                    WHERE value = {row}"""
                )
        return Attribute(
            self.name, "single", len(names), bounds, "time" if kind.form == "time" else "number"
        )

    def _bounds(self, number: str) -> tuple[float, ...]:
        """Inner bounds of buckets of about equal counts."""
        cuts = ", ".join(str(n / BUCKETS) for n in range(1, BUCKETS))
        found, lowest = sql.one(
            self.connection,
            f"SELECT quantile_disc(number, [{cuts}]), min(number) "
            f"FROM (SELECT {number} AS number FROM {self.rows}) WHERE isfinite(number)",
        )
        return tuple(sorted(set(found or ()) - {lowest}))
