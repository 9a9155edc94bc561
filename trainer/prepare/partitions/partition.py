"""One partition of users, from staged rows to its file of events. The unit of work of prepare.

    staged rows ──> one row a user and item, by time ──> splits ──> windows ──> files
    staged_rows.py     kept_rows.py (sorting.py)       splits.py  event_windows.py, event_parts.py

Partitions hold consecutive users, so users ascend through their files. Their number depends on the
data alone, so memory limit, threads and engine change no byte of the output. A partition is held in
memory (MEMORY).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.machine import usable_cpus
from trainer.base.split_names import SPLITS
from trainer.data.events.event_reader import feedback_of
from trainer.prepare.partitions.event_parts import write_events
from trainer.prepare.partitions.event_windows import EARLIER
from trainer.prepare.partitions.kept_rows import KeptRows, keep_rows
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan
from trainer.prepare.partitions.splits import Hashes
from trainer.sources import sql

MEMORY = 2_000_000_000
"""Bytes to have for each partition that is being made: 8M rows take half of it."""
COUNTS = ("count", "count_with_validation", "count_of_all")
"""Positives in train, in train and validation, in all splits."""


def prepare_partition(plan: PartitionPlan, part: int, resources: sql.Resources) -> PartitionCounts:
    """Deduplicate, split, and write the files of one partition."""
    threads = resources.threads or usable_cpus()
    with sql.in_memory(threads) as connection, sql.faults(f"making partition {part}"):
        kept = keep_rows(Hashes(connection), plan, part)
    _write_counts(kept, plan, part)
    counted = write_events(plan, part, kept)
    return PartitionCounts(kept.duplicates, kept.neutral, *counted)


def _write_counts(kept: KeptRows, plan: PartitionPlan, part: int) -> None:
    """Positives of each item and user in train, in train and validation, and in all splits."""
    events = kept.events
    counted_E = (feedback_of(plan.kinds)[events.kind_E] > 0) & (kept.window_E != EARLIER)
    split_n = events.split_E[counted_E]
    for side, row_E in (("item", events.item_E), ("user", events.user_E)):
        key_n = row_E[counted_E].astype(np.int64) * len(SPLITS) + split_n
        key, count = np.unique(key_n, return_counts=True)
        row, place = np.unique(key // len(SPLITS), return_inverse=True)
        count_S = np.zeros((len(row), len(SPLITS)), dtype=np.int64)
        count_S[place, key % len(SPLITS)] = count
        columns = dict(zip(COUNTS, count_S.cumsum(axis=1).T, strict=True))
        target = Path(plan.staging) / f"counts-{side}/part-{part:05d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"row": row, **columns}), target)
