"""Times of interactions: brought to int64, in one unit, and none that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.checks import FLOATS, INTEGERS, LARGE_INTEGERS, given_value, moment_of
from trainer.sources.sources import Source

BANDS = {
    "seconds": (10**8, 5 * 10**9),
    "milliseconds": (10**11, 5 * 10**12),
    "microseconds": (10**14, 5 * 10**15),
    "nanoseconds": (10**17, 5 * 10**18),
}
"""What times of 1973 to 2128 are in each unit: a factor of 20 lies between two."""
A_SECOND = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
"""Moments a second in each unit."""
BETWEEN = 0.001
"""Share of rows that may lie in no band, where two units are told."""


@dataclass(frozen=True)
class Times:
    """How column `timestamp` is read."""

    expression: str
    """SQL of an int64; NULL where there is none."""
    unit: str
    """For dataset.json."""


def unit_of_moment(moment: int) -> str | None:
    """The unit in whose band a moment lies; None: in none."""
    return next((unit for unit, (low, high) in BANDS.items() if low <= abs(moment) < high), None)


def times_of(connection: duckdb.DuckDBPyConnection, table: str, label: str) -> Times:
    """SQL that reads column `timestamp` as int64, and its unit.

    Integers stay as they are; dates and times become microseconds since 1970 (UTC); numbers with a
    fraction are multiplied by a million. Raises Mistake where a value cannot be read so.
    """
    column_type = sql.columns_of(connection, table)["timestamp"]
    times = _by_type(column_type, label) or _by_values(connection, table, label, column_type)
    given, shown = given_value("timestamp"), "CAST(timestamp AS VARCHAR)"
    if column_type.startswith(("TIMESTAMP", "DATE")):
        given, shown = "timestamp IS NOT NULL", "NULL"
    count, example, row = sql.one(
        connection,
        f"""SELECT count(*), first({shown} ORDER BY rowid), min(rowid) + 1
        FROM {table} WHERE {given} AND ({times.expression}) IS NULL""",
    )
    if count:
        limit = "the years 1 to 9999" if times.unit == "microseconds" else "int64"
        reads = "" if example is None else f", for example {example!r}"
        raise Mistake(
            f"{label} is beyond {limit} in {count} rows{reads}, first in row {row}: "
            "correct these rows, or name another column with --timestamp-column"
        )
    return times


def _by_type(column_type: str, label: str) -> Times | None:
    """How a type is read; None where its values decide."""
    if column_type in (*INTEGERS, *LARGE_INTEGERS):
        return Times("TRY_CAST(timestamp AS BIGINT)", "as in the source")
    if column_type.startswith(("TIMESTAMP", "DATE")):
        return Times(f"epoch_us({moment_of('timestamp', column_type)})", "microseconds")
    if column_type == "BLOB":
        raise Mistake(f"{label} holds bytes that are not UTF-8, which are no times: {REMEDY}")
    if column_type not in (*FLOATS, "VARCHAR") and not column_type.startswith("DECIMAL"):
        raise Mistake(f"{label} is of type {column_type}, which is no time: {REMEDY}")
    return None


REMEDY = (
    "give integers (epoch), dates, ISO 8601 text, 31.12.2025 or 12/31/2025, each also with a time, "
    "or name another column with --timestamp-column"
)
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
WRITTEN = {
    "day.month.year": "%d.%m.%Y",
    "day/month/year": "%d/%m/%Y",
    "month/day/year": "%m/%d/%Y",
}
"""Dates as people write them -> DuckDB's format."""


def _by_values(
    connection: duckdb.DuckDBPyConnection, table: str, label: str, column_type: str
) -> Times:
    value = "TRY_CAST(timestamp AS DOUBLE)"
    moment = "TRY_CAST(timestamp AS TIMESTAMPTZ)" if column_type == "VARCHAR" else "NULL"
    filled, numbers, whole, times = sql.one(
        connection,
        f"""SELECT count(*) FILTER ({given_value("timestamp")}),
            count(*) FILTER (isfinite({value})),
            count(*) FILTER (isfinite({value}) AND {value} = trunc({value})),
            count(*) FILTER ({moment} IS NOT NULL)
        FROM {table}""",
    )
    if whole == filled:
        # As integers first: a DOUBLE would round those above 2^53.
        return Times(
            f"coalesce(TRY_CAST(timestamp AS BIGINT), TRY_CAST({value} AS BIGINT))",
            "as in the source",
        )
    if numbers == filled:
        return Times(f"TRY_CAST(round({value} * 1e6) AS BIGINT)", "source unit x 1e-6")
    if times == filled:
        return Times(f"epoch_us({moment_of('timestamp', column_type)})", "microseconds")
    if column_type == "VARCHAR" and (written := _written(connection, table, label, filled)):
        return written
    read = f"isfinite({value})" if numbers >= times else f"{moment} IS NOT NULL"
    count, example = sql.one(
        connection,
        f"""SELECT count(*), first(CAST(timestamp AS VARCHAR) ORDER BY rowid) FROM {table}
        WHERE {given_value("timestamp")} AND NOT coalesce({read}, false)""",
    )
    raise Mistake(
        f"{label} cannot be read as a time in {count} rows, for example {example!r}: {REMEDY}"
    )


def _written(
    connection: duckdb.DuckDBPyConnection, table: str, label: str, filled: int
) -> Times | None:
    """How dates are read that are written in one of the other orders; None: not all are in one.

    Raises:
        Mistake: where no day is above 12, so that days may be months.
    """
    values = {
        order: f"try_strptime(trim(timestamp), {[day + clock for clock in CLOCKS]!r})"
        for order, day in WRITTEN.items()
    }
    counted = sql.one(
        connection, f"SELECT {', '.join(f'count({each})' for each in values.values())} FROM {table}"
    )
    fits = [order for order, count in zip(values, counted, strict=True) if count == filled]
    if len(fits) > 1:
        raise Mistake(
            f"{label} may be {' or '.join(fits)}: no day is above 12. Write the dates as 2025-12-31"
        )
    return Times(f"epoch_us({values[fits[0]]})", "microseconds") if fits else None


def unit_of(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[str | None, dict[str, int]]:
    """The unit that most values of a SELECT of `moment` are in, and the rows by unit.

    None and no rows where the values tell of no unit, as places and days do.
    """
    counts = ", ".join(
        f"count(*) FILTER (moment BETWEEN {low} AND {high})" for low, high in BANDS.values()
    )
    rows, *found = sql.one(connection, f"SELECT count(moment), {counts} FROM ({query})")
    by_unit = {unit: count for unit, count in zip(BANDS, found, strict=True) if count}
    if not by_unit or rows - sum(by_unit.values()) > BETWEEN * rows:
        return None, {}
    return max(by_unit, key=lambda unit: by_unit[unit]), by_unit


def check_one_unit(
    connection: duckdb.DuckDBPyConnection, source: Source, times: Times, label: str
) -> None:
    """Raise Mistake where table `raw` has times of several units, which would be put in order."""
    _, by_unit = unit_of(connection, f"SELECT {times.expression} AS moment FROM raw")
    if len(by_unit) < 2:
        return
    units = ", ".join(f"{count:,} rows in {unit}" for unit, count in by_unit.items())
    raise Mistake(
        f"{label} mixes units: {units}{_units_by_file(connection, source, times)}. Bring all times "
        "to one unit first (a millisecond is a thousandth of a second)"
    )


def _units_by_file(connection: duckdb.DuckDBPyConnection, source: Source, times: Times) -> str:
    """`; seconds in a.csv, milliseconds in b.csv`, where files tell."""
    if source.select_of is None or len(source.files) < 2:
        return ""
    first: dict[str, str] = {}
    for file in source.files:
        query = f"SELECT {times.expression} AS moment FROM ({source.select_of(file)})"
        unit, _ = unit_of(connection, query)
        if unit is not None:
            first.setdefault(unit, file)
    return "; " + ", ".join(f"{unit} in {file}" for unit, file in first.items()) if first else ""


def check_unit_of_parent(
    connection: duckdb.DuckDBPyConnection, new: str, old: str, label: str
) -> None:
    """Raise Mistake where two SELECTs of `moment` are in different units."""
    (ours, _), (theirs, _) = unit_of(connection, new), unit_of(connection, old)
    if ours is not None and theirs is not None and ours != theirs:
        raise Mistake(
            f"{label} has {ours}, the extended dataset {theirs}: bring the new times to one unit "
            "with the old (a millisecond is a thousandth of a second)"
        )
