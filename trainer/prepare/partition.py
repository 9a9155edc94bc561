"""One partition of users, from staged rows to its file of events. The unit of work of prepare.

Partitions hold consecutive users, so users ascend through their files. Their number depends on the
data alone, so memory limit, threads and engine change no byte of the output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from trainer.data.event_files import Events, EventWriter, Layout, part_file
from trainer.data.events import EventRows
from trainer.data.histories import held_out
from trainer.data.schema import Kind
from trainer.prepare.splits import SplitRule, split_query
from trainer.sources import sql

EVENTS_AT_ONCE = 1 << 18
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
    num_users: int
    num_items: int
    rule: SplitRule
    history_length: int
    has_timestamps: bool
    kinds: tuple[Kind, ...]
    """Liked, and disliked where the source has such."""
    keep: str
    """Which of repeated (user, item) rows stays: first or last."""


@dataclass(frozen=True)
class PartitionCounts:
    """Counts of one partition, added up over all."""

    duplicates: int
    neutral: int
    users: int
    """Those with events."""
    count_SK: np.ndarray
    """Events by split and kind, int64 [3, K]."""
    asked_S: np.ndarray
    """Users with a positive in each split, int64 [3]."""
    cold_S: np.ndarray
    """Those of validation and test without a history."""

    def __add__(self, other: PartitionCounts) -> PartitionCounts:
        mine, theirs = vars(self), vars(other)
        return PartitionCounts(**{name: mine[name] + theirs[name] for name in mine})


def prepare_partition(plan: PartitionPlan, part: int, resources: sql.Resources) -> PartitionCounts:
    """Deduplicate, split, and write the files of one partition."""
    with (
        _spill_folder(resources.spill) as spill,
        sql.faults(f"making partition {part}"),
        closing(sql.connect(replace(resources, spill=spill))) as connection,
    ):
        duplicates, neutral = _keep_rows(connection, plan, part)
        counted = _write_events(connection, plan, part)
        _write_counts(connection, plan, part)
    return PartitionCounts(duplicates, neutral, *counted)


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
    return reduce(add, counts)


def places_without_time(seed: int) -> str:
    """Expression of a row's place in its user's rows, from 0, where there are no times.

    Of user, item and seed alone: the order of the source's rows tells of the items (files are
    sorted by time, by item, by rating) and is lost. Another order than the split's is.
    """
    order = f"hash(user, item, {seed}, 'place'), item"
    return f"row_number() OVER (PARTITION BY user ORDER BY {order}) - 1"


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


def _write_events(
    connection: duckdb.DuckDBPyConnection, plan: PartitionPlan, part: int
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Write the partition's events; users, events by split and kind, queries, cold ones."""
    layout = Layout(plan.num_users, plan.num_items, plan.kinds, plan.has_timestamps, True)
    reader = connection.sql(
        """SELECT user, item, (feedback < 0)::TINYINT AS kind, split, moment
        FROM kept ORDER BY user, moment, position"""
    ).to_arrow_reader(EVENTS_AT_ONCE)
    cold_S = np.zeros(3, dtype=np.int64)
    with EventWriter(Path(plan.out) / part_file(0, part), layout) as writer:
        for events in whole_users(reader, plan.has_timestamps):
            writer.write(events)
            rows = rows_of(events)
            for split in (1, 2):
                asked = held_out(rows, split, plan.rule.follows_time, plan.history_length)
                cold_S[split] += np.count_nonzero(np.diff(asked.history.offsets) == 0)
    return writer.users, writer.count_SK, writer.asked_S, cold_S


def whole_users(reader: pa.RecordBatchReader, with_time: bool) -> Iterator[Events]:
    """The events of a result in blocks that end with a user's last."""
    rest = reader.schema.empty_table()
    for batch in reader:
        table = pa.concat_tables([rest, pa.Table.from_batches([batch])]).combine_chunks()
        user_E = table.column("user").to_numpy()
        cut = int(np.searchsorted(user_E, user_E[-1])) if len(user_E) else 0
        if cut:
            yield _events(table.slice(0, cut), with_time)
        rest = table.slice(cut)
    if len(rest):
        yield _events(rest, with_time)


def _events(table: pa.Table, with_time: bool) -> Events:
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return Events(
        columns["user"],
        columns["item"],
        columns["kind"],
        columns["split"],
        columns["moment"] if with_time else None,
    )


def rows_of(events: Events) -> EventRows:
    """The same as they are read again."""
    start_R = np.flatnonzero(np.diff(events.user_E, prepend=-1))
    return EventRows(
        events.user_E[start_R],
        np.append(start_R, len(events.user_E)),
        events.item_E,
        np.where(events.kind_E > 0, -1, 1).astype(np.int8),
        events.split_E,
        events.time_E,
    )


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
