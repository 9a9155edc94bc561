"""dataset.json of a dataset that was just made."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import fsspec

from trainer.data.event_files import part_file, splits_of
from trainer.data.schema import (
    SCHEMA_VERSION,
    Dataset,
    EventWindow,
    FileRecord,
    combined_digest,
    sha256_of,
)
from trainer.prepare.attributes import Encoded
from trainer.prepare.partition import PartitionCounts, PartitionPlan
from trainer.prepare.staging import Catalog


def describe(
    partial: Path,
    plan: PartitionPlan,
    catalog: Catalog,
    counts: PartitionCounts,
    dropped: dict[str, int],
    attributes: dict[str, list[Encoded]],
    source: dict[str, Any],
    notes: dict[str, int],
    parent: Dataset | None,
) -> Dataset:
    """dataset.json's contents."""
    window = EventWindow(
        tuple(part_file(0, part) for part in range(plan.parts)),
        counts.users,
        int(counts.count_SK.sum()),
    )
    local = fsspec.filesystem("file")
    files = {
        str(each.relative_to(partial)): FileRecord(each.stat().st_size, sha256_of(local, str(each)))
        for each in sorted(partial.rglob("*.parquet"))
    }
    reasons = Counter({**dropped, "duplicate": counts.duplicates, "neutral_rating": counts.neutral})
    reasons.update({} if parent is None else parent.dropped)
    return Dataset(
        path=str(partial),
        schema_version=SCHEMA_VERSION,
        num_users=catalog.num_users,
        num_items=catalog.num_items,
        windows=(window,),
        kinds=plan.kinds,
        splits=splits_of(counts.count_SK, plan.kinds, counts.asked_S),
        split_rule={key: value for key, value in asdict(plan.rule).items() if value is not None},
        history_length=plan.history_length,
        has_timestamps=plan.has_timestamps,
        dropped={reason: count for reason, count in reasons.items() if count},
        notes={
            "validation_queries_without_history": int(counts.cold_S[1]),
            "test_queries_without_history": int(counts.cold_S[2]),
            **notes,
        },
        user_attributes=tuple(each.attribute for each in attributes["user"]),
        item_attributes=tuple(each.attribute for each in attributes["item"]),
        source={**source, "duckdb": duckdb.__version__},
        parent_digest=None if parent is None else parent.digest,
        files=files,
        digest=combined_digest(files),
    )
