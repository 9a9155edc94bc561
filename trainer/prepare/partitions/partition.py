"""One partition of users, from staged rows to its file of events. The unit of work of prepare.

Partitions hold consecutive users, so users ascend through their files. Their number depends on the
data alone, so memory limit, threads and engine change no byte of the output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import duckdb

from trainer.prepare.partitions.event_parts import write_events
from trainer.prepare.partitions.kept_rows import keep_rows
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan
from trainer.sources import sql

ROW_GROUP_ROWS = 32_768
PARQUET = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"


def prepare_partition(plan: PartitionPlan, part: int, resources: sql.Resources) -> PartitionCounts:
    """Deduplicate, split, and write the files of one partition."""
    with (
        _spill_folder(resources.spill) as spill,
        sql.faults(f"making partition {part}"),
        closing(sql.connect(replace(resources, spill=spill))) as connection,
    ):
        duplicates, neutral = keep_rows(connection, plan, part)
        counted = write_events(connection, plan, part)
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


def _write_counts(connection: duckdb.DuckDBPyConnection, plan: PartitionPlan, part: int) -> None:
    """Positives of each item and user in train, in train and validation, and in all splits."""
    for side in ("item", "user"):
        target = Path(plan.staging) / f"counts-{side}/part-{part:05d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        connection.execute(
            f"""COPY (SELECT {side} AS row, count(*) FILTER (split = 0) AS count,
                count(*) FILTER (split < 2) AS count_with_validation, count(*) AS count_of_all
                FROM kept WHERE feedback = 1
                GROUP BY {side}) TO {sql.target(target)} (FORMAT parquet)"""
        )
