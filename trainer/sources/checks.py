"""Checks of the raw interactions, and the SQL that brings ids, times and ratings to one type."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.text_files import NULL_TEXTS

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
LARGE_INTEGERS = ("UBIGINT", "HUGEINT", "UHUGEINT")
FLOATS = ("FLOAT", "DOUBLE")
YEARS = "BETWEEN -62135596800 AND 253402300799"
"""Seconds since 1970 of the years 1 to 9999."""


@dataclass(frozen=True)
class IdColumn:
    """How an id column is read."""

    is_integer: bool
    """True where every id is an int64; else ids are strings."""

    def expression(self, column: str) -> str:
        """SQL of the id."""
        return f"CAST({column} AS {self.type})"

    @property
    def type(self) -> str:
        """DuckDB's type of the raw id."""
        return "BIGINT" if self.is_integer else "VARCHAR"


def check_ids(
    connection: duckdb.DuckDBPyConnection, table: str, column: str, label: str, flag: str
) -> IdColumn:
    """Raise on columns that hold no ids; say whether they are integers.

    Text is taken for integers where each value reads as one and back to the same text
    (`007` stays text). Nulls are not looked at here.
    """
    column_type = sql.columns_of(connection, table)[column]
    remedy = f"Name another column with {flag}, or cast it to integers or strings first"
    if column_type in INTEGERS:
        return IdColumn(True)
    whole = column_type.startswith("DECIMAL") and column_type.endswith(",0)")
    if column_type in LARGE_INTEGERS or whole:
        beyond = sql.one(
            connection,
            f"SELECT any_value({column})::VARCHAR FROM {table} WHERE {column} IS NOT NULL "
            f"AND TRY_CAST({column} AS BIGINT) IS NULL",
        )[0]
        if beyond is not None:
            raise Mistake(
                f"{label} has id {beyond}, beyond the largest int64 {2**63 - 1}: "
                "cast the column to strings first"
            )
        return IdColumn(True)
    if column_type == "BLOB":
        raise Mistake(f"{label} holds bytes that are not UTF-8, which are no ids. {remedy}")
    if column_type not in ("VARCHAR", "UUID") and not column_type.startswith("ENUM"):
        example = sql.one(connection, f"SELECT any_value({column})::VARCHAR FROM {table}")[0]
        raise Mistake(
            f"{label} is of type {column_type} (for example {example}), which is no id: ids are "
            f"integers or strings. {remedy}"
        )
    return _check_text_ids(connection, table, column, label, remedy)


def _check_text_ids(
    connection: duckdb.DuckDBPyConnection, table: str, column: str, label: str, remedy: str
) -> IdColumn:
    value = f"CAST({column} AS VARCHAR)"
    filled, integers, numbers, dates = sql.one(
        connection,
        f"""SELECT count({column}),
            count(*) FILTER (CAST(TRY_CAST({value} AS BIGINT) AS VARCHAR) = {value}),
            count(*) FILTER (TRY_CAST({value} AS DOUBLE) IS NOT NULL),
            count(*) FILTER (TRY_CAST({value} AS TIMESTAMPTZ) IS NOT NULL)
        FROM {table}""",
    )
    if filled and integers == filled:
        return IdColumn(True)
    whole = f"CAST({column} AS VARCHAR) LIKE '%.%'"
    if filled and numbers == filled:
        example = sql.one(connection, f"SELECT min({value}) FILTER ({whole}) FROM {table}")[0]
        if example is not None:
            raise Mistake(
                f"{label} holds floating point numbers (for example {example}), which are no ids: "
                f"above 2^24 or 2^53 they would merge. {remedy}"
            )
    if filled and dates == filled:
        example = sql.one(connection, f"SELECT min({value}) FROM {table}")[0]
        raise Mistake(f"{label} holds dates (for example {example}), which are no ids. {remedy}")
    return IdColumn(False)


def null_id(column: str) -> str:
    """SQL condition: an id is missing (NULL or blank).

    What text files write for a missing value is NULL already; `None` or `null` in a typed column
    is somebody's name.
    """
    blank = f"NOT {_is_integer(column)} AND trim(CAST({column} AS VARCHAR)) = ''"
    return f"({column} IS NULL OR ({blank}))"


def null_text(column: str) -> str:
    """SQL condition: a text stands for a missing value."""
    return f"lower(trim(CAST({column} AS VARCHAR))) IN ('', {', '.join(map(sql.text, NULL_TEXTS))})"


def check_nulls(
    connection: duckdb.DuckDBPyConnection, table: str, labels: dict[str, str], as_written: str
) -> None:
    """Raise where ids are missing, with the count, the first row's number and what it reads.

    as_written: SELECT of the same rows where no text stands for a missing value.
    """
    for column, label in labels.items():
        count, first = sql.one(
            connection,
            f"SELECT count(*), min(rowid) + 1 FROM {table} WHERE {null_id(column)}",
        )
        if not count:
            continue
        text = sql.one(
            connection,
            f"SELECT coalesce(CAST({column} AS VARCHAR), '') FROM ({as_written}) "
            f"LIMIT 1 OFFSET {first - 1}",
        )[0]
        reads = f", where it reads {text!r}" if text else ""
        keep = f". To keep {text!r} as an id, quote it or write Parquet" if text.strip() else ""
        raise Mistake(
            f"{label} is missing (null, NaN or empty) in {count} rows, first in row {first}{reads}:"
            f" every row needs its ids. Remove these rows, or pass --drop-null-ids{keep}"
        )


def given_value(column: str) -> str:
    """SQL condition: a time or a rating is there (not NULL, NaN or a text that stands for them)."""
    return f"({column} IS NOT NULL AND ({_is_integer(column)} OR NOT {null_text(column)}))"


def _is_integer(column: str) -> str:
    """SQL condition of the column's type, which DuckDB knows before it reads a row."""
    return f"typeof({column}) IN ({', '.join(map(sql.text, (*INTEGERS, *LARGE_INTEGERS)))})"


@dataclass(frozen=True)
class Thresholds:
    """Ratings that count as positive (>=) and as disliked (<=)."""

    positive: float
    dislike: float | None
    """None: nothing is disliked, ratings below `positive` are neutral."""


def check_ratings(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    label: str,
    positive: float | None,
    dislike: float | None,
) -> Thresholds:
    """Raise on ratings that are no numbers; choose thresholds for ratings of 0.5 or 1 to 5."""
    value = "TRY_CAST(rating AS DOUBLE)"
    bad, example, low, high = sql.one(
        connection,
        f"""SELECT count(*) FILTER ({given_value("rating")} AND {value} IS NULL),
            min(CAST(rating AS VARCHAR)) FILTER ({given_value("rating")} AND {value} IS NULL),
            min({value}) FILTER (NOT isnan({value})), max({value}) FILTER (NOT isnan({value}))
        FROM {table}""",
    )
    if bad:
        raise Mistake(
            f"{label} is no number in {bad} rows, for example {example!r}: "
            "name another column with --rating-column, or correct these rows"
        )
    if low is None:
        raise Mistake(f"{label} has no rating at all: name another column with --rating-column")
    if positive is None and dislike is None and not (low >= 0.5 and 2 < high <= 5):
        raise Mistake(
            f"{label} goes from {low:g} to {high:g}, not from 1 to 5: say which ratings are "
            "positive with --positive-threshold (>=) and disliked with --dislike-threshold (<=)"
        )
    at_least = 4.0 if positive is None else positive
    at_most = 2.0 if positive is None and dislike is None else dislike
    if at_most is not None and at_most >= at_least:
        raise Mistake(
            f"--dislike-threshold {at_most:g} must lie below --positive-threshold {at_least:g}: "
            "a rating cannot be both"
        )
    if at_least > high:
        raise Mistake(
            f"--positive-threshold {at_least:g} is above every rating (highest {high:g}): "
            "no row would be positive. Lower it"
        )
    return Thresholds(at_least, at_most)


def moment_of(column: str, of_type: str) -> str:
    """SQL of a TIMESTAMP: of a date, a timestamp or a text of the years 1 to 9999; else NULL.

    DuckDB's own error on others (INT64_MIN as text) ends the connection.
    """
    value = column
    if of_type in ("VARCHAR", "TIMESTAMPTZ_NS"):
        value = f"TRY_CAST({column} AS TIMESTAMPTZ)"
    elif of_type == "DATE":
        value = f"TRY_CAST({column} AS TIMESTAMP)"
    return f"CASE WHEN epoch({value}) {YEARS} THEN {value} END"
