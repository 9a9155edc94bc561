"""A partition's rows that are kept: one a user and item, none neutral, each with its split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from trainer.data.schema import Dataset
from trainer.prepare.partitions.event_windows import known_before
from trainer.prepare.partitions.partition_plan import PartitionPlan
from trainer.prepare.partitions.splits import split_query
from trainer.sources import sql


def places_without_time(seed: int) -> str:
    """Expression of a row's place in its user's rows, from 0, where there are no times.

    Of user, item and seed alone: the order of the source's rows tells of the items (files are
    sorted by time, by item, by rating) and is lost. Another order than the split's is.
    """
    order = f"hash(user, item, {seed}, 'place'), item"
    return f"row_number() OVER (PARTITION BY user ORDER BY {order}) - 1"


def keep_rows(
    connection: duckdb.DuckDBPyConnection, plan: PartitionPlan, part: int
) -> tuple[int, int]:
    """Make `kept` (user, item, feedback, moment, position, window, split), and `carried`.

    Returns the rows that fall out as duplicates, and as neutral.
    """
    staged = _staged_rows(connection, plan.staging, part)
    pairs = pairs_select(connection, plan.staging, part, plan.keep, plan.starts)
    connection.execute(f"CREATE TEMP TABLE pairs AS {pairs}")
    rows = sql.number(connection, f"SELECT count(*) FROM {staged}")
    neutral = sql.number(connection, "SELECT count(*) FROM pairs WHERE feedback = 0")
    connection.execute(
        """CREATE TEMP TABLE earlier (user BIGINT, positives BIGINT);
        CREATE TEMP TABLE carried (
            user BIGINT, item BIGINT, kind TINYINT, moment BIGINT, position BIGINT);
        CREATE TEMP TABLE held AS FROM pairs WHERE feedback <> 0
            QUALIFY row_number() OVER (PARTITION BY user, item ORDER BY "window") = 1;
        DROP TABLE pairs"""
    )
    if plan.parent is not None:
        _leave_known_out(connection, plan.parent)
    kept = sql.number(connection, "SELECT count(*) FROM held")
    place = places_without_time(plan.rule.seed)
    order = "moment, position"
    if not plan.has_timestamps:
        order = f"{place} AS moment, {place} AS position"
    connection.execute(
        f"""CREATE TEMP TABLE rated AS SELECT user, item, feedback, {order}, given, old, "window"
        FROM held"""
    )
    newest = plan.windows - 1
    connection.execute(
        f"""INSERT INTO earlier SELECT user, count(*) FROM rated
        WHERE "window" < {newest} AND feedback = 1 GROUP BY user"""
    )
    connection.execute(
        f"""CREATE TEMP TABLE kept AS SELECT user, item, feedback, moment, position, "window",
            split::TINYINT AS split
        FROM ({split_query(plan.rule, f'(FROM rated WHERE "window" = {newest})', "earlier")})
        UNION ALL BY NAME
        SELECT user, item, feedback, moment, position, "window", 0::TINYINT AS split FROM rated
        WHERE "window" < {newest}"""
    )
    connection.execute("DROP TABLE rated; DROP TABLE held")
    return rows - neutral - kept, neutral


def _leave_known_out(connection: duckdb.DuckDBPyConnection, parent: str) -> None:
    """Take from `held` what the parent has; its part of `earlier`, and `carried`."""
    pairs = connection.sql("SELECT user, item FROM held ORDER BY user, item").fetchnumpy()
    dataset = Dataset.load(parent, verify="none")
    user_P, item_P = (np.asarray(pairs[name], dtype=np.int64) for name in ("user", "item"))
    is_known_P, carried, positives = known_before(dataset, user_P, item_P)
    known = pa.table({"user": user_P[is_known_P], "item": item_P[is_known_P]})
    users = pa.table({"user": np.unique(user_P), "positives": positives})
    connection.register("known_pairs", known)
    connection.register("known_users", users)
    connection.execute(
        "DELETE FROM held USING known_pairs "
        "WHERE held.user = known_pairs.user AND held.item = known_pairs.item"
    )
    connection.execute("INSERT INTO earlier SELECT user, positives FROM known_users")
    if carried is not None:
        place = np.arange(len(carried.user_E)) - len(carried.user_E)
        columns = (carried.user_E, carried.item_E, carried.kind_E, carried.time_E, place)
        names = ("user", "item", "kind", "moment", "position")
        connection.register("carried_events", pa.table(dict(zip(names, columns, strict=True))))
        connection.execute(f"INSERT INTO carried SELECT {', '.join(names)} FROM carried_events")


def pairs_select(
    connection: duckdb.DuckDBPyConnection,
    staging: str,
    part: int,
    keep: str,
    starts: Sequence[int] = (),
) -> str:
    """SELECT of a partition's staged rows, one a user, item and window.

    keep: first or last of the rows of one window. Between windows the first that counts stays.
    """
    direction = "DESC" if keep == "last" else "ASC"
    rows = f'(SELECT *, 0 AS "window" FROM {_staged_rows(connection, staging, part)})'
    if len(starts) > 1:
        listed = ", ".join(f"{start}::BIGINT" for start in starts)
        rows = f"""(SELECT staged.*, coalesce(number, 0) AS "window"
            FROM {_staged_rows(connection, staging, part)} AS staged ASOF LEFT JOIN (
                SELECT unnest([{listed}]) AS start, unnest(range({len(starts)})) AS number
            ) AS windows ON staged.moment >= windows.start)"""
    return f"""SELECT * EXCLUDE (old), min(old) OVER (pair ROWS BETWEEN UNBOUNDED PRECEDING
            AND UNBOUNDED FOLLOWING) AS old
        FROM {rows}
        WINDOW pair AS (PARTITION BY user, item, "window" ORDER BY coalesce(given, 0),
            moment {direction}, position {direction})
        QUALIFY row_number() OVER pair = 1"""


def _staged_rows(connection: duckdb.DuckDBPyConnection, staging: str, part: int) -> str:
    """SQL after FROM of a partition's rows; none where all rows of its users were dropped."""
    files = sorted(Path(staging, f"rows/part={part}").glob("*.parquet"))
    if files:
        return sql.parquet(connection, files)
    columns = dict.fromkeys(("user", "item", "moment", "position"), "BIGINT")
    columns.update(dict.fromkeys(("feedback", "given", "old"), "TINYINT"))
    nulls = ", ".join(f"NULL::{of_type} AS {name}" for name, of_type in columns.items())
    return f"(SELECT {nulls} LIMIT 0)"
