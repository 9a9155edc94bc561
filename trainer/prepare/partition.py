"""One partition of users, from staged rows to its Parquet files. The unit of work of prepare.

Partitions hold consecutive users, so their queries joined in order ascend. Their number depends on
the data alone, so memory limit, threads and engine change no byte of the output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from trainer.prepare.histories import (
    History,
    history_tables,
    places_without_time,
    queries_select,
    rows_select,
)
from trainer.prepare.splits import SplitRule, split_query
from trainer.sources import sql

SPLIT_NAMES = ("train", "validation", "test")
ROW_GROUP_ROWS = 32_768
PARQUET = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"


@dataclass(frozen=True)
class PartitionPlan:
    """All that a worker needs to make any partition."""

    staging: str
    """Folder with `rows/part=K/*.parquet`, and for what is put together later."""
    out: str
    """Folder of the dataset being made."""
    parts: int
    rule: SplitRule
    history_length: int
    has_timestamps: bool
    has_feedback: bool
    keep: str
    """Which of repeated (user, item) rows stays: first or last."""


@dataclass(frozen=True)
class PartitionCounts:
    """Counts of one partition, added up over all."""

    duplicates: int
    neutral: int
    rows: tuple[int, int, int]
    positives: tuple[int, int, int]
    disliked: tuple[int, int, int]
    queries: tuple[int, int, int]
    queries_without_history: tuple[int, int, int]


def prepare_partition(plan: PartitionPlan, part: int, resources: sql.Resources) -> PartitionCounts:
    """Deduplicate, split, attach histories, and write the files of one partition."""
    with (
        _spill_folder(resources.spill) as spill,
        sql.faults(f"making partition {part}"),
        closing(sql.connect(replace(resources, spill=spill))) as connection,
    ):
        duplicates, neutral = _keep_rows(connection, plan, part)
        history = History(
            length=plan.history_length,
            cyclic=not plan.has_timestamps,
            until_first_target=plan.rule.follows_time,
            with_disliked=plan.has_feedback,
        )
        history_tables(connection, history)
        counted = [_write_split(connection, plan, history, part, s) for s in range(3)]
        _write_counts(connection, plan, part)
    columns: Any = zip(*counted, strict=True)
    return PartitionCounts(duplicates, neutral, *(tuple(each) for each in columns))


@contextmanager
def _spill_folder(above: str) -> Iterator[str]:
    """A folder for what does not fit in memory; on a node of its own it leaves nothing behind."""
    Path(above).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="part-", dir=above) as folder:
        yield folder
    with suppress(OSError):  # the driver's, or another task's
        Path(above).rmdir()


def total(counts: list[PartitionCounts]) -> PartitionCounts:
    """The sum of the partitions' counts."""
    summed: dict[str, Any] = {}
    for field, value in asdict(counts[0]).items():
        values = [asdict(each)[field] for each in counts]
        if isinstance(value, tuple | list):
            summed[field] = tuple(sum(column) for column in zip(*values, strict=True))
        else:
            summed[field] = sum(values)
    return PartitionCounts(**summed)


def part_file(split: str, part: int) -> str:
    """Name of a partition's interactions of a split."""
    return f"{split}/part-{part:05d}.parquet"


def _keep_rows(
    connection: duckdb.DuckDBPyConnection, plan: PartitionPlan, part: int
) -> tuple[int, int]:
    """Make table `kept` (user, item, feedback, moment, position, split); count what falls out."""
    staged = _staged_rows(connection, plan.staging, part)
    pairs = pairs_select(connection, plan.staging, part, plan.keep)
    connection.execute(f"CREATE TEMP TABLE pairs AS {pairs}")
    rows = sql.number(connection, f"SELECT count(*) FROM {staged}")
    kept, neutral = sql.one(
        connection, "SELECT count(*), count(*) FILTER (feedback = 0) FROM pairs"
    )
    place = places_without_time(plan.rule.seed)
    order = "moment, position"
    if not plan.has_timestamps:
        order = f"{place} AS moment, {place} AS position"
    connection.execute(
        f"""CREATE TEMP VIEW with_feedback AS SELECT user, item, feedback, {order}, given, old
        FROM pairs WHERE feedback <> 0"""
    )
    connection.execute(
        f"""CREATE TEMP TABLE kept AS SELECT user, item, feedback, moment, position,
            split::TINYINT AS split FROM ({split_query(plan.rule, "with_feedback")})"""
    )
    connection.execute("DROP VIEW with_feedback; DROP TABLE pairs")
    return rows - kept, neutral


def pairs_select(connection: duckdb.DuckDBPyConnection, staging: str, part: int, keep: str) -> str:
    """SELECT of a partition's staged rows, one a user and item. keep: first or last."""
    direction = "DESC" if keep == "last" else "ASC"
    return f"""SELECT * EXCLUDE (old), min(old) OVER (pair ROWS BETWEEN UNBOUNDED PRECEDING
            AND UNBOUNDED FOLLOWING) AS old
        FROM {_staged_rows(connection, staging, part)}
        WINDOW pair AS (PARTITION BY user, item ORDER BY coalesce(given, 0),
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


def _write_split(
    connection: duckdb.DuckDBPyConnection,
    plan: PartitionPlan,
    history: History,
    part: int,
    split: int,
) -> tuple[int, int, int, int, int]:
    """Write a split's interactions and queries; rows, positives, disliked, queries, cold ones."""
    split_name = SPLIT_NAMES[split]
    rows, positives = sql.one(
        connection,
        f"SELECT count(*), count(*) FILTER (feedback = 1) FROM kept WHERE split = {split}",
    )
    if rows:
        target = Path(plan.out) / part_file(split_name, part)
        target.parent.mkdir(parents=True, exist_ok=True)
        order = f"hash(user, item, {sql.literal(plan.rule.seed)}), user, item"
        time = "moment AS timestamp, " if plan.has_timestamps else ""
        disliked = ", disliked" if plan.has_feedback else ""
        connection.execute(
            f"""COPY (SELECT user, item, feedback, {time}position, history{disliked}
                FROM ({rows_select(history, split)}) ORDER BY {order})
            TO {sql.target(target)} ({PARQUET})"""
        )
    if split == 0:
        return rows, positives, rows - positives, 0, 0
    target = Path(plan.staging) / f"queries-{split_name}/part-{part:05d}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    connection.execute(
        f"COPY ({queries_select(history, split)} ORDER BY user) TO {sql.target(target)} ({PARQUET})"
    )
    queries, cold = sql.one(
        connection,
        f"SELECT count(*), count(*) FILTER (len(history) = 0) "
        f"FROM {sql.parquet(connection, [target])}",
    )
    return rows, positives, rows - positives, queries, cold


def _write_counts(connection: duckdb.DuckDBPyConnection, plan: PartitionPlan, part: int) -> None:
    """Positives of each item and user in train, and in train and validation."""
    for side in ("item", "user"):
        target = Path(plan.staging) / f"counts-{side}/part-{part:05d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        connection.execute(
            f"""COPY (SELECT {side} AS row, count(*) FILTER (split = 0) AS count,
                count(*) AS count_with_validation FROM kept WHERE split < 2 AND feedback = 1
                GROUP BY {side}) TO {sql.target(target)} (FORMAT parquet)"""
        )
