"""What staged rows and finished partitions must be: times, windows, and something in each split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.data.schema import Dataset
from trainer.prepare.partitions.event_windows import WindowRule, window_starts
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan
from trainer.prepare.partitions.splits import SplitRule
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.sources import sql
from trainer.sources.sources import Source
from trainer.sources.times import check_unit_of_parent


def starts_of_windows(
    connection: duckdb.DuckDBPyConnection, arguments: PrepareArguments, source: Source, folder: str
) -> tuple[int, ...]:
    """First moments of the windows that the staged rows are dealt into; none: they are one."""
    wanted = arguments.window
    if wanted is None:
        return ()
    if not source.has_timestamp:
        raise Mistake(
            f"--window {wanted} needs times, {arguments.source} has none: name their "
            "column with --timestamp-column, or leave --window out"
        )
    staged = sorted(Path(folder).glob("part=*/new_*.parquet"))
    if not staged:
        return ()
    relation = sql.parquet(connection, staged)
    rule = WindowRule.parse(wanted)
    return tuple(window_starts(connection, relation, rule, arguments.source))


def check_times(
    connection: duckdb.DuckDBPyConnection,
    folder: str,
    unit: str | None,
    parent: Dataset | None,
    label: str,
    tell: Callable[[str], None],
) -> None:
    """Raise where new times are no such times as the parent's; tell where they say nothing."""
    staged = sorted(Path(folder).glob("part=*/new_*.parquet"))
    if not staged:
        return
    relation = sql.parquet(connection, staged)
    first, last, rows = sql.one(
        connection, f"SELECT min(moment), max(moment), count(*) FROM {relation}"
    )
    if first == last and rows > 1:
        tell(
            f"all {rows:,} rows have the same time ({first}): no history precedes a row, and "
            "the order of a user's rows is lost. Is --timestamp-column the right column?"
        )
    if parent is None:
        return
    if unit != parent.source["timestamp_unit"]:
        raise Mistake(
            f"timestamps are {unit}, those of the extended dataset "
            f"{parent.source['timestamp_unit']}: give both in one unit"
        )
    times = [
        str(time)
        for window in parent.windows
        for time in (window.first_time, window.last_time)
        if time is not None
    ]
    check_unit_of_parent(
        connection,
        f"SELECT moment FROM {relation}",
        f"SELECT unnest([{', '.join(times)}])::BIGINT AS moment",
        label,
    )


def check_counts(
    plan: PartitionPlan, counts: PartitionCounts, label: str, tell: Callable[[str], None]
) -> None:
    """Raise where a split has nothing to learn from or to ask for; tell of appended windows."""
    if plan.parent is None:
        return _check_splits(counts, plan.rule)
    if not counts.count_WSK.sum():
        return tell(f"all rows of {label} are in {plan.parent} already: no window is added")
    for split in SPLITS[1:]:
        if not counts.asked_S[SPLITS.index(split)]:
            tell(f"the new window holds nothing out for {split}: no user has enough in it")
    return None


def _check_splits(counts: PartitionCounts, rule: SplitRule) -> None:
    """Raise where a split has nothing to learn from or to ask for."""
    count_SK = counts.count_WSK.sum(axis=0)
    rows = count_SK.sum(axis=1).tolist()
    for split, positives in zip(SPLITS, count_SK[:, 0], strict=True):
        if positives == 0:
            raise Mistake(
                f"--split {rule.rule} leaves no positive interaction for {split} "
                f"(rows: train {rows[0]}, validation {rows[1]}, test {rows[2]}): take another "
                "--split or other shares, or more data"
            )
