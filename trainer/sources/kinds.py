"""How a column of items or users is read as an attribute: by its type, its header, its values."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import duckdb

from trainer.sources import sql
from trainer.sources.checks import FLOATS, INTEGERS, LARGE_INTEGERS, moment_of

Form = Literal["text", "multi", "list", "number", "time", "vector", "guess", "none"]

MAX_NUMBER_CATEGORIES = 64
"""Numbers of more distinct values than this are no categories."""
NEARLY_UNIQUE = 1000
"""Texts of more distinct values than this, and more than half as many as there are, say little."""
TOO_MANY = "has nearly as many values as rows"
SPANS = ("TIME", "TIME_NS", "TIME WITH TIME ZONE", "INTERVAL")
"""Types of times that are no moments."""
LISTED = r"\s*\[?\s*[-+0-9.eE]+(\s*[,;| ]\s*[-+0-9.eE]+)+\s*\]?\s*"
"""Numbers in a row, as text."""


@dataclass(frozen=True)
class Kind:
    """How a column is read."""

    form: Form
    """text: a value is a category. multi: text of several, with `separator`. list: several. number,
    time: what is read as a number where it has many values. vector: a list of numbers. guess: text
    that may be any of these. none: not at all."""
    separator: str = ""
    of_type: str = "VARCHAR"
    """DuckDB's type of the column."""
    reason: str = ""
    """Why none."""
    insist: bool = False
    """Numbers stay numbers, however few values they have."""

    def float32(self, column: str) -> str:
        """SQL of a column as FLOAT; NULL for what is missing, not finite, or beyond it."""
        number = self.number(column)
        return f"CASE WHEN isfinite({number}) THEN TRY_CAST({number} AS FLOAT) END"

    def number(self, column: str) -> str:
        """SQL of a column as DOUBLE: numbers as they are, times as seconds (since 1970)."""
        if self.form != "time":
            return f"TRY_CAST({column} AS DOUBLE)"
        if self.of_type in SPANS:
            return f"TRY(epoch({column}))"
        return f"epoch({moment_of(column, self.of_type)})"

    @property
    def of(self) -> Literal["number", "time"]:
        """What its numbers are, where it has such."""
        return "time" if self.form == "time" else "number"

    def vector(self, column: str) -> str:
        """SQL of a column of vectors as FLOAT[]."""
        if self.of_type != "VARCHAR":
            return f"{column}::FLOAT[]"
        numbers = f"regexp_replace(trim({column}, ' []'), '\\s*[,;| ]\\s*', ', ', 'g')"
        return f"TRY_CAST('[' || {numbers} || ']' AS FLOAT[])"


def kind_of(column: str, of_type: str, guessed: bool) -> Kind:
    """By RecBole's header, else by the type. guessed: types say nothing, all is text."""
    header = column.split(":")[1] if ":" in column else ""
    if of_type == "VARCHAR" and header in ("token", "token_seq", "float", "float_seq"):
        match header:
            case "token":
                return Kind("text")
            case "token_seq":
                return Kind("multi", " ")
            case "float":
                return Kind("number", insist=True)
        return Kind("vector")
    if of_type == "VARCHAR":
        return Kind("guess" if guessed else "text")
    element = re.fullmatch(r"(.*)\[\d*\]", of_type)
    if element is not None:
        return _list_of(element[1], of_type)
    if of_type in (*INTEGERS, *LARGE_INTEGERS, *FLOATS) or of_type.startswith("DECIMAL"):
        return Kind("number", of_type=of_type)
    if of_type.startswith(("TIMESTAMP", "DATE")) or of_type in SPANS:
        return Kind("time", of_type=of_type)
    if of_type in ("BOOLEAN", "UUID") or of_type.startswith("ENUM"):
        return Kind("text", of_type=of_type)
    if of_type == "BLOB":
        return Kind("none", reason="holds bytes that are not UTF-8")
    return Kind("none", reason=f"is of type {of_type[:60]}, which no attribute can hold")


def _list_of(element: str, of_type: str) -> Kind:
    if element in FLOATS or element.startswith("DECIMAL"):
        return Kind("vector", of_type=of_type)
    if element in (*INTEGERS, *LARGE_INTEGERS, "VARCHAR", "BOOLEAN", "UUID", "DATE"):
        return Kind("list", of_type=of_type)
    if element.startswith(("ENUM", "TIMESTAMP")) and not element.endswith("]"):
        return Kind("list", of_type=of_type)
    return Kind("none", reason=f"is a list of {element[:60]}, which no attribute can hold")


def settle(connection: duckdb.DuckDBPyConnection, table: str, column: str, kind: Kind) -> Kind:
    """The kind after a look at a table's values: no guess any more."""
    if kind.form in ("guess", "text") and kind.of_type == "VARCHAR":
        return _kind_of_text(connection, table, column, kind)
    return kind


def with_few_as_text(
    connection: duckdb.DuckDBPyConnection, table: str, column: str, kind: Kind
) -> Kind:
    """The kind of a column of numbers or times: few different ones are categories."""
    if kind.form not in ("number", "time") or kind.insist:
        return kind
    estimate = sql.number(connection, f"SELECT approx_count_distinct({column}) FROM {table}")
    if estimate > 2 * MAX_NUMBER_CATEGORIES:  # it is right within some hundredths
        return kind
    counted = sql.number(connection, f"SELECT count(DISTINCT {column}) FROM {table}")
    return replace(kind, form="text") if counted <= MAX_NUMBER_CATEGORIES else kind


def is_nearly_unique(
    connection: duckdb.DuckDBPyConnection, table: str, column: str, kind: Kind
) -> bool:
    """Whether nearly every value of a column of categories is another one."""
    if kind.form not in ("text", "multi", "list"):
        return False
    distinct, values = sql.one(
        connection,
        f"SELECT approx_count_distinct(each), count(each) "
        f"FROM (SELECT {values_of(column, kind)} AS each FROM {table})",
    )
    return bool(distinct > NEARLY_UNIQUE and distinct > 0.5 * values)


def values_of(column: str, kind: Kind) -> str:
    """SQL of a column's values, one a row; NULL or '' where there is none."""
    if kind.of_type.startswith(("TIMESTAMP", "DATE")) and not kind.of_type.endswith("]"):
        column = moment_of(column, kind.of_type)
    elif kind.of_type in FLOATS:
        column = f"CASE WHEN isfinite({column}) THEN {column} END"
    trimmed = f"nullif(trim(CAST({column} AS VARCHAR)), '')"
    match kind.form:
        case "multi":
            return f"unnest(string_split({trimmed}, {sql.text(kind.separator)}))"
        case "list":
            return f"unnest({column})"
        case _:
            return trimmed


def _kind_of_text(
    connection: duckdb.DuckDBPyConnection, table: str, column: str, kind: Kind
) -> Kind:
    """What text turns out to be; text of a typed column is no number and no time."""
    number = f"TRY_CAST({column} AS DOUBLE)"
    filled, numbers, zeros, times, piped, listed, points = sql.one(
        connection,
        f"""SELECT count(*), count({number}),
            count(*) FILTER (regexp_matches(trim({column}), '^[-+]?0[0-9]')),
            count(*) FILTER (TRY_CAST({column} AS TIMESTAMPTZ) IS NOT NULL),
            count(*) FILTER (contains({column}, '|')),
            count(*) FILTER (regexp_full_match({column}, {sql.text(LISTED)})),
            count(*) FILTER (contains({column}, '.'))
        FROM {table} WHERE trim({column}) <> ''""",
    )
    if filled and listed == filled and points:
        return Kind("vector")
    if kind.form == "guess" and filled and numbers == filled and not zeros:
        return Kind("number")
    if kind.form == "guess" and filled and times == filled:
        return Kind("time")
    return Kind("multi", "|") if piped else Kind("text")


def bucket_names(bounds: tuple[float, ...], kind: Kind) -> list[str]:
    """What the buckets between ascending bounds are called."""
    if not bounds:
        return ["any"]
    shown = [_shown(each, kind) for each in bounds]
    middle = [f"{low} to {high}" for low, high in itertools.pairwise(shown)]
    return [f"below {shown[0]}", *middle, f"from {shown[-1]}"]


def _shown(bound: float, kind: Kind) -> str:
    """A bound as a person reads it: dates for seconds since 1970."""
    if kind.form != "time" or kind.of_type in SPANS:
        return f"{bound:g}"
    try:
        moment = datetime.fromtimestamp(bound, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{bound:g}"
    return moment.strftime("%Y-%m-%d" if bound % 86_400 == 0 else "%Y-%m-%d %H:%M:%S")
