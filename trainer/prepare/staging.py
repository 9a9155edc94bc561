"""From a source to staged rows: raw table, checks, id rows, and rows dealt into partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from trainer.base.mistake import Mistake
from trainer.prepare.features.context_columns import ContextColumn
from trainer.prepare.features.event_kinds import MOST_WEIGHT, EventKinds
from trainer.sources import sql
from trainer.sources.checks import (
    IdColumn,
    Thresholds,
    check_ids,
    check_nulls,
    check_ratings,
    null_id,
)
from trainer.sources.sources import SideTable, Source
from trainer.sources.text_files import readable
from trainer.sources.times import check_one_unit, times_of

ROWS_A_PARTITION = 8_000_000
"""Rows of one partition at most, in the mean."""
STAGED = """FORMAT parquet, COMPRESSION uncompressed, DICTIONARY_SIZE_LIMIT 1, PARTITION_BY (part),
            OVERWRITE_OR_IGNORE"""
"""Files that are read once: plain numbers."""


@dataclass(frozen=True)
class Catalog:
    """Rows of users and items, as tables `users` and `items` (row, raw)."""

    num_users: int
    num_items: int
    user_ids: IdColumn
    item_ids: IdColumn


def load_raw(
    connection: duckdb.DuckDBPyConnection, source: Source, label: str, drop_null_ids: bool
) -> dict[str, int]:
    """Copy the source into table `raw`, whose rowid is the row's position; check the ids.

    Returns the rows dropped, by reason.
    """
    with readable(label, source.format):
        connection.execute(f"CREATE TABLE raw AS {source.select}")
    if not sql.number(connection, "SELECT count(*) FROM raw"):
        raise Mistake(f"{label} is empty: it holds no interactions")
    labels = {"raw_user": _column_label(source, "user"), "raw_item": _column_label(source, "item")}
    if not drop_null_ids:
        check_nulls(connection, "raw", labels, source.as_written)
        return {}
    missing = " OR ".join(null_id(column) for column in labels)
    dropped = sql.number(connection, f"SELECT count(*) FROM raw WHERE {missing}")
    connection.execute(f"DELETE FROM raw WHERE {missing}")
    return {"missing_id": dropped} if dropped else {}


def load_side(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    table: SideTable | None,
    drop_null_ids: bool,
) -> tuple[IdColumn, int]:
    """Copy a side table into `side_<side>`; check that its ids are unique and there.

    Returns the kind of ids, and how many rows without one were dropped.
    """
    if table is None:
        connection.execute(f"CREATE TABLE side_{side} (raw BIGINT)")
        return IdColumn(True), 0
    with readable(table.label, "a table"):
        connection.execute(f"CREATE TABLE side_{side} AS {table.select}")
        # Only in ids does a text stand for a missing value: a film may be called None.
        connection.execute(f"CREATE TEMP TABLE side_ids AS {table.select_ids}")
        connection.execute(
            f"""UPDATE side_{side} SET raw = NULL FROM side_ids
            WHERE side_{side}.rowid = side_ids.rowid AND side_ids.raw IS NULL"""
        )
        connection.execute("DROP TABLE side_ids")
    if not sql.number(connection, f"SELECT count(*) FROM side_{side}"):
        raise Mistake(f"{table.label} is empty: it has a header and no rows")
    label = f"column {table.id_column!r} of {table.label}"
    dropped = 0
    if drop_null_ids:
        missing = null_id("raw")
        dropped = sql.number(connection, f"SELECT count(*) FROM side_{side} WHERE {missing}")
        connection.execute(f"DELETE FROM side_{side} WHERE {missing}")
    else:
        check_nulls(connection, f"side_{side}", {"raw": label}, table.select)
    ids = check_ids(connection, f"side_{side}", "raw", label, f"--{side}-column")
    twice = connection.execute(
        f"SELECT raw, count(*) FROM side_{side} GROUP BY raw HAVING count(*) > 1 ORDER BY raw"
    ).fetchall()
    if twice:
        raise Mistake(
            f"{table.label} has {len(twice)} ids more than once, for example {twice[0][0]!r} "
            f"({twice[0][1]} rows): leave one row for each {side}"
        )
    return ids, dropped


def check_source(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    label: str,
    positive: float | None,
    dislike: float | None,
) -> tuple[IdColumn, IdColumn, Thresholds | None]:
    """Check ids and ratings of table `raw`; kinds of user and item ids, thresholds of ratings."""
    users = check_ids(connection, "raw", "raw_user", _column_label(source, "user"), "--user-column")
    items = check_ids(connection, "raw", "raw_item", _column_label(source, "item"), "--item-column")
    if not source.has_rating:
        if positive is not None or dislike is not None:
            raise Mistake(
                f"--positive-threshold and --dislike-threshold need ratings, {label} has no "
                "rating column: name it with --rating-column, or leave the thresholds out"
            )
        return users, items, None
    thresholds = check_ratings(
        connection, "raw", _column_label(source, "rating"), positive, dislike
    )
    return users, items, thresholds


def make_catalog(
    connection: duckdb.DuckDBPyConnection, user_ids: IdColumn, item_ids: IdColumn, label: str
) -> Catalog:
    """Deal rows to all ids of `raw` and the side tables by the hash of the id.

    Rows of tables `users` and `items` that are there already (a dataset being extended) stay, new
    ids come after them.
    """
    numbers = []
    for side, ids in (("user", user_ids), ("item", item_ids)):
        # One type in all tables: DuckDB would join 0010 with 10 where one side has integers.
        connection.execute(f"ALTER TABLE side_{side} ALTER raw TYPE {ids.type}")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {side}s (row BIGINT, raw {ids.type})")
        before = sql.number(connection, f"SELECT count(*) FROM {side}s")
        connection.execute(
            f"""INSERT INTO {side}s
            SELECT (SELECT count(*) FROM {side}s) + row_number() OVER (ORDER BY hash(raw), raw) - 1,
                raw
            FROM (SELECT raw FROM (SELECT DISTINCT {ids.expression(f"raw_{side}")} AS raw FROM raw)
                UNION SELECT raw FROM side_{side}) AS found
            WHERE NOT EXISTS (SELECT 1 FROM {side}s WHERE {side}s.raw = found.raw)"""
        )
        count = sql.number(connection, f"SELECT count(*) FROM {side}s")
        if count < 2:
            raise Mistake(
                f"{label} has one {side} only: a retrieval model needs at least two. "
                f"Is --{side}-column the right column?"
            )
        numbers.append(count)
        _check_overlap(connection, side, ids, before)
    return Catalog(numbers[0], numbers[1], user_ids, item_ids)


def _check_overlap(
    connection: duckdb.DuckDBPyConnection, side: str, ids: IdColumn, before: int
) -> None:
    """Raise where a side table shares no id with the interactions.

    before: rows of the side that were there already; they count too.
    """
    rows = sql.number(connection, f"SELECT count(*) FROM side_{side}")
    if not rows:
        return
    shared = sql.number(
        connection,
        f"""SELECT count(*) FROM side_{side}
        WHERE raw IN (SELECT {ids.expression(f"raw_{side}")} FROM raw
            UNION ALL SELECT raw FROM {side}s WHERE row < {before})""",
    )
    if not shared:
        example = sql.one(connection, f"SELECT min(raw) FROM side_{side}")[0]
        raise Mistake(
            f"none of the {rows} ids of --{side}s (for example {example!r}) occurs in the "
            f"interactions: is --{side}-column the id in both files?"
        )


def partitions(rows: int) -> int:
    """Partitions for so many rows: by the data alone, so that the output is always the same."""
    return max(1, -(-rows // ROWS_A_PARTITION))


def stage_rows(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    catalog: Catalog,
    kinds: EventKinds,
    context: Sequence[ContextColumn],
    parts: int,
    first_position: int,
    folder: str,
) -> tuple[dict[str, int], str | None]:
    """Write `raw` with id rows, feedback and time into partitions under `folder`.

    Returns the rows dropped, by reason, and the unit of timestamps.
    """
    reasons = dict(kinds.dropped)
    if source.has_weight:
        reasons |= _weight_reasons(connection, source)
    time, unit = f"{first_position} + raw.rowid", None
    if source.in_order:
        unit = "place"
    elif source.has_timestamp:
        label = _column_label(source, "timestamp")
        times = times_of(connection, "raw", label)
        check_one_unit(connection, source, times, label)
        time, unit = times.expression, times.unit
        reasons["missing_timestamp"] = f"({time}) IS NULL"
    dropped = {
        reason: sql.number(connection, f"SELECT count(*) FROM raw WHERE {condition}")
        for reason, condition in reasons.items()
    }
    _check_left(connection, source, dropped)
    keep = " AND ".join(f"NOT ({each})" for each in reasons.values()) or "true"
    more = ", TRY_CAST(weight AS FLOAT) AS weight" if source.has_weight else ""
    more += "".join(f", {each.expression} AS {sql.name(each.column)}" for each in context)
    Path(folder).mkdir(parents=True, exist_ok=True)
    connection.execute(
        f"""COPY (
            SELECT users.row * {parts} // {catalog.num_users} AS part,
                users.row::{_type_of(catalog.num_users)} AS user,
                items.row::{_type_of(catalog.num_items)} AS item,
                {kinds.expression} AS kind, {time} AS moment,
                {first_position} + raw.rowid AS position{", given" if source.given else ""}{more}
            FROM raw
            JOIN users ON users.raw = {catalog.user_ids.expression("raw.raw_user")}
            JOIN items ON items.raw = {catalog.item_ids.expression("raw.raw_item")}
            {" ".join(each.join for each in context)}
            WHERE {keep}
        ) TO {sql.target(folder)} ({STAGED}, FILENAME_PATTERN 'new_{{i}}')"""
    )
    return {reason: count for reason, count in dropped.items() if count}, unit


def _weight_reasons(connection: duckdb.DuckDBPyConnection, source: Source) -> dict[str, str]:
    """Rows that are dropped for their weight, by reason; raises Mistake on weights below 0."""
    weight = "TRY_CAST(weight AS FLOAT)"
    label = _column_label(source, "weight")
    lowest, highest = sql.one(
        connection, f"SELECT min({weight}), max({weight}) FROM raw WHERE isfinite({weight})"
    )
    if lowest is not None and lowest < 0:
        raise Mistake(f"{label} holds {lowest:g}: a weight is above 0; correct it, or leave it out")
    if highest is not None and highest > MOST_WEIGHT:
        raise Mistake(f"{label} holds {highest:g}: weights are at most {MOST_WEIGHT:,.0f}")
    missing = f"{weight} IS NULL OR NOT isfinite({weight})"
    return {"missing_weight": missing, "weight_zero": f"coalesce({weight} = 0, false)"}


def _type_of(rows: int) -> str:
    """DuckDB's type of a row id."""
    return "INTEGER" if rows < 2**31 else "BIGINT"


def _check_left(
    connection: duckdb.DuckDBPyConnection, source: Source, dropped: dict[str, int]
) -> None:
    """Raise where no row has what a row needs."""
    rows = sql.number(connection, "SELECT count(*) FROM raw")
    for reason, count in dropped.items():
        if count == rows:
            what = reason.removeprefix("missing_").removesuffix("_zero").split("_")[0]
            raise Mistake(
                f"{_column_label(source, what)} is empty in all {rows:,} rows: "
                f"name another column with --{what}-column"
            )


def _column_label(source: Source, which: str) -> str:
    column = source.columns.get(which)
    named = f"the {which} column" if column is None else f"column {column!r}"
    return f"{source.label}: {named}"
