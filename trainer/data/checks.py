"""Checks of the raw interactions, and the SQL that brings ids, times and ratings to one type."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from trainer.data import sql
from trainer.mistake import Mistake

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
FLOATS = ("FLOAT", "DOUBLE")


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
    if column_type in ("UBIGINT", "HUGEINT", "UHUGEINT"):
        largest = sql.one(connection, f"SELECT max({column}) FROM {table}")[0]
        if largest is not None and largest > 2**63 - 1:
            raise Mistake(
                f"{label} has id {largest}, beyond the largest int64 {2**63 - 1}: "
                "cast the column to strings first"
            )
        return IdColumn(True)
    if column_type not in ("VARCHAR", "UUID"):
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
    """SQL condition: an id is missing (NULL, empty or a text that stands for missing)."""
    return (
        f"({column} IS NULL OR lower(trim(CAST({column} AS VARCHAR))) IN "
        "('', 'nan', 'null', 'none', '<na>'))"
    )


def check_nulls(connection: duckdb.DuckDBPyConnection, table: str, labels: dict[str, str]) -> None:
    """Raise where ids are missing, with the count and the first row's number."""
    for column, label in labels.items():
        count, first = sql.one(
            connection,
            f"SELECT count(*), min(rowid) + 1 FROM {table} WHERE {null_id(column)}",
        )
        if count:
            raise Mistake(
                f"{label} is missing (null, NaN or empty) in {count} rows, first in row {first}: "
                "every interaction needs both ids. Remove these rows, or pass --drop-null-ids"
            )


def timestamp_expression(
    connection: duckdb.DuckDBPyConnection, table: str, label: str
) -> tuple[str, str]:
    """SQL that reads column `timestamp` as int64, and its unit for dataset.json.

    Integers stay as they are; dates and times become microseconds since 1970 (UTC); numbers with a
    fraction are multiplied by a million.
    """
    column_type = sql.columns_of(connection, table)["timestamp"]
    if column_type in (*INTEGERS, "UBIGINT", "HUGEINT"):
        return "CAST(timestamp AS BIGINT)", "as in the source"
    if column_type.startswith(("TIMESTAMP", "DATE")):
        return "epoch_us(CAST(timestamp AS TIMESTAMPTZ))", "microseconds"
    if column_type not in (*FLOATS, "VARCHAR") and not column_type.startswith("DECIMAL"):
        raise Mistake(
            f"{label} is of type {column_type}, which is no time: give integers (epoch), dates "
            "or ISO 8601 text, or name another column with --timestamp-column"
        )
    value = "TRY_CAST(timestamp AS DOUBLE)"
    filled, numbers, whole, times = sql.one(
        connection,
        f"""SELECT count(*) FILTER ({_given_value("timestamp")}),
            count(*) FILTER (isfinite({value})),
            count(*) FILTER (isfinite({value}) AND {value} = trunc({value})),
            count(*) FILTER (TRY_CAST(CAST(timestamp AS VARCHAR) AS TIMESTAMPTZ) IS NOT NULL)
        FROM {table}""",
    )
    if whole == filled:
        return (
            f"coalesce(TRY_CAST(timestamp AS BIGINT), CAST({value} AS BIGINT))"
            if column_type == "VARCHAR"
            else "TRY_CAST(timestamp AS BIGINT)"
        ), "as in the source"
    if numbers == filled:
        return f"CAST(round({value} * 1e6) AS BIGINT)", "source unit x 1e-6"
    if times == filled:
        return "epoch_us(TRY_CAST(timestamp AS TIMESTAMPTZ))", "microseconds"
    read = (
        "isfinite(TRY_CAST(timestamp AS DOUBLE))"
        if numbers >= times
        else ("TRY_CAST(timestamp AS TIMESTAMPTZ) IS NOT NULL")
    )
    count, example = sql.one(
        connection,
        f"""SELECT count(*), first(CAST(timestamp AS VARCHAR) ORDER BY rowid) FROM {table}
        WHERE {_given_value("timestamp")} AND NOT coalesce({read}, false)""",
    )
    raise Mistake(
        f"{label} cannot be read as a time in {count} rows, for example {example!r}: give integers "
        "(epoch), dates or ISO 8601 text, or name another column with --timestamp-column"
    )


def _given_value(column: str) -> str:
    """SQL condition: a value is there (not NULL, NaN or an empty text)."""
    return f"({column} IS NOT NULL AND NOT {null_id(column)})"


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
        f"""SELECT count(*) FILTER ({_given_value("rating")} AND {value} IS NULL),
            min(CAST(rating AS VARCHAR)) FILTER ({_given_value("rating")} AND {value} IS NULL),
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
