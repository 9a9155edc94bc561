"""Attributes of items and users as vocabularies: text, lists and numbers to dense rows.

Row 0 of every vocabulary is missing or unknown; the others go by falling count, then by value.
Numbers of many values become buckets of equal counts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import duckdb

from trainer.data import sql
from trainer.data.schema import Attribute, AttributeKind
from trainer.data.sources import SideTable
from trainer.mistake import Mistake

MAX_VALUES = 100_000
"""Rows of a vocabulary; rarer values are unknown."""
MAX_NUMBER_CATEGORIES = 64
"""Numbers of more distinct values than this become buckets."""
BUCKETS = 16
RESERVED = ("item", "user", "raw_id", "title", "count", "count_with_validation")


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
    """Column kept as the title, no attribute."""
    flag: str
    """The command's flag, for messages."""


def encode_side(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    table: SideTable,
    wanted: Wanted,
    known: dict[str, Attribute],
    extends: bool,
) -> tuple[list[Encoded], dict[str, str]]:
    """Encode the wanted columns of table `side_<side>`; also the columns left out, with reasons.

    Fills table `vocabulary` (side, name, row, value, count). `known` has the attributes of a
    dataset being extended (`extends`), whose vocabulary is in `vocabulary` and keeps its rows.
    """
    columns = {each.split(":")[0]: each for each in table.kinds if each != wanted.title}
    for name in wanted.names or ():
        if name not in columns:
            raise Mistake(
                f"{table.label} has no column {name!r} ({wanted.flag}). {sql.near(name, columns)}"
            )
    encoded: list[Encoded] = []
    left_out: dict[str, str] = {}
    for name in columns if wanted.names is None else wanted.names:
        if extends and _own_name(name) not in known:
            left_out[name] = "is no attribute of the extended dataset"
            continue
        reason = _reason_against(connection, side, columns[name], table.kinds[columns[name]])
        if reason and wanted.names is not None and reason != TOO_MANY:
            raise Mistake(f"{table.label}: column {name!r} {reason}: leave it out")
        if reason and wanted.names is None:
            left_out[name] = reason
            continue
        own_name = _own_name(name)
        target = f"encoded_{side}_{len(encoded)}"
        kind = _settle_kind(connection, side, columns[name], table.kinds[columns[name]])
        if own_name in known and (known[own_name].boundaries or kind == "buckets"):
            kind = "buckets" if known[own_name].boundaries else "text"
        attribute = _encode(connection, side, own_name, columns[name], kind, target, known)
        encoded.append(Encoded(attribute, target))
    found = {each.attribute.name for each in encoded}
    encoded.extend(Encoded(each, None) for name, each in known.items() if name not in found)
    return encoded, left_out


def _own_name(name: str) -> str:
    """The attribute's name: the column's, unless the dataset's tables use that themselves."""
    return f"{name}_" if name in RESERVED else name


TOO_MANY = "has nearly as many values as rows"


def _reason_against(
    connection: duckdb.DuckDBPyConnection, side: str, column: str, kind: str
) -> str | None:
    if kind == "unsupported":
        return "is of a type that is no attribute"
    if kind in ("text", "text?"):
        distinct, rows = sql.one(
            connection,
            f"SELECT approx_count_distinct({sql.name(column)}), count(*) FROM side_{side}",
        )
        if distinct > 1000 and distinct > 0.5 * rows and not _all_numbers(connection, side, column):
            return TOO_MANY
    return None


def _all_numbers(connection: duckdb.DuckDBPyConnection, side: str, column: str) -> bool:
    value = sql.name(column)
    bad = sql.number(
        connection,
        f"SELECT count(*) FROM side_{side} WHERE {value} IS NOT NULL AND trim({value}) <> '' "
        f"AND TRY_CAST({value} AS DOUBLE) IS NULL",
    )
    return bad == 0


def _settle_kind(connection: duckdb.DuckDBPyConnection, side: str, column: str, kind: str) -> str:
    """One of text, multi:<separator>, list, buckets, by looking at the values."""
    value = sql.name(column)
    if kind == "text?":
        if _all_numbers(connection, side, column):
            kind = "number"
        elif sql.number(
            connection, f"SELECT count(*) FROM side_{side} WHERE contains({value}, '|')"
        ):
            kind = "multi:|"
        else:
            kind = "text"
    if kind == "number":
        distinct = sql.number(connection, f"SELECT count(DISTINCT {value}) FROM side_{side}")
        kind = "text" if distinct <= MAX_NUMBER_CATEGORIES else "buckets"
    return kind


def _encode(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    name: str,
    column: str,
    kind: str,
    target: str,
    known: dict[str, Attribute],
) -> Attribute:
    """Make `target` (raw, value) and the attribute's vocabulary."""
    if kind == "buckets":
        number = f"TRY_CAST({sql.name(column)} AS DOUBLE)"
        bounds = known[name].boundaries if name in known else _bounds(connection, side, number)
        return _encode_buckets(connection, side, name, number, bounds, target)
    value = f"nullif(trim(CAST({sql.name(column)} AS VARCHAR)), '')"
    shape: AttributeKind = "multi"
    match kind.partition(":"):
        case ("multi", _, separator):
            values = f"unnest(string_split({value}, {sql.text(separator)}))"
        case ("list", _, _):
            values = f"unnest({sql.name(column)})"
        case _:
            shape, values = "single", value
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE given_values AS
        SELECT DISTINCT raw, nullif(trim(CAST(each AS VARCHAR)), '') AS value
        FROM (SELECT raw, {values} AS each FROM side_{side})"""
    )
    num_values = _extend_vocabulary(connection, side, name)
    vocabulary = (
        f"(SELECT row, value FROM vocabulary WHERE side = '{side}' AND name = {sql.text(name)} "
        "AND row > 0)"
    )
    if shape == "single":
        row = "any_value(coalesce(v.row, 0))::BIGINT"
    else:
        row = "list(v.row ORDER BY v.row) FILTER (v.row IS NOT NULL)"
    connection.execute(
        f"""CREATE TEMP TABLE {target} AS SELECT g.raw, {row} AS value
        FROM given_values g LEFT JOIN {vocabulary} v ON v.value = g.value GROUP BY g.raw"""
    )
    return Attribute(name, shape, num_values)


def _extend_vocabulary(connection: duckdb.DuckDBPyConnection, side: str, name: str) -> int:
    """Append the values of `given_values` that the vocabulary lacks; its size after."""
    own = f"side = '{side}' AND name = {sql.text(name)}"
    largest = sql.number(connection, f"SELECT coalesce(max(row), -1) FROM vocabulary WHERE {own}")
    if largest < 0:
        connection.execute(
            f"""INSERT INTO vocabulary SELECT '{side}', {sql.text(name)}, 0, NULL,
            (SELECT count(*) FROM given_values WHERE value IS NULL)"""
        )
        largest = 0
    connection.execute(
        f"""INSERT INTO vocabulary
        SELECT '{side}', {sql.text(name)},
            {largest} + row_number() OVER (ORDER BY count DESC, value), value, count
        FROM (SELECT value, count(*) AS count FROM given_values
            WHERE value IS NOT NULL
                AND value NOT IN (SELECT value FROM vocabulary WHERE {own} AND row > 0)
            GROUP BY value ORDER BY count DESC, value LIMIT {MAX_VALUES - 1 - largest})"""
    )
    return sql.number(connection, f"SELECT max(row) + 1 FROM vocabulary WHERE {own}")


def _bounds(connection: duckdb.DuckDBPyConnection, side: str, number: str) -> tuple[float, ...]:
    """Inner bounds of buckets of about equal counts."""
    cuts = ", ".join(str(n / BUCKETS) for n in range(1, BUCKETS))
    found, lowest = sql.one(
        connection,
        f"SELECT quantile_disc({number}, [{cuts}]), min({number}) FROM side_{side} "
        f"WHERE isfinite({number})",
    )
    return tuple(sorted(set(found or ()) - {lowest}))


def _encode_buckets(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    name: str,
    number: str,
    bounds: tuple[float, ...],
    target: str,
) -> Attribute:
    listed = "[" + ", ".join(f"{each!r}::DOUBLE" for each in bounds) + "]::DOUBLE[]"
    connection.execute(
        f"""CREATE TEMP TABLE {target} AS SELECT raw, CASE WHEN isfinite({number})
            THEN 1 + len(list_filter({listed}, lambda bound: bound <= {number})) ELSE 0 END::BIGINT
            AS value FROM side_{side}"""
    )
    names = ["", *_bucket_names(bounds)]
    for row, value in enumerate(names):
        connection.execute(
            f"""INSERT INTO vocabulary SELECT '{side}', {sql.text(name)}, {row},
            {sql.text(value) if row else "NULL"}, count(*) FROM {target} WHERE value = {row}
            AND NOT EXISTS (SELECT 1 FROM vocabulary WHERE side = '{side}'
                AND name = {sql.text(name)} AND row = {row})
            HAVING NOT EXISTS (SELECT 1 FROM vocabulary WHERE side = '{side}'
                AND name = {sql.text(name)} AND row = {row})"""
        )
    return Attribute(name, "single", len(names), bounds)


def _bucket_names(bounds: tuple[float, ...]) -> list[str]:
    if not bounds:
        return ["any"]
    middle = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(bounds)]
    return [f"below {bounds[0]:g}", *middle, f"from {bounds[-1]:g}"]
