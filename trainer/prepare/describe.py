"""dataset.json of a dataset that was just made."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import fsspec

from trainer.data.schema import (
    SCHEMA_VERSION,
    Dataset,
    FileRecord,
    Split,
    combined_digest,
    sha256_of,
)
from trainer.prepare.attributes import Encoded
from trainer.prepare.partition import SPLIT_NAMES, PartitionCounts, PartitionPlan, part_file
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
    splits = {
        split: Split(
            rows=counts.rows[n],
            positives=counts.positives[n],
            disliked=counts.disliked[n],
            files=tuple(
                part_file(split, part)
                for part in range(plan.parts)
                if (partial / part_file(split, part)).exists()
            ),
            queries=counts.queries[n],
        )
        for n, split in enumerate(SPLIT_NAMES)
    }
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
        splits=splits,
        split_rule={key: value for key, value in asdict(plan.rule).items() if value is not None},
        history_length=plan.history_length,
        has_timestamps=plan.has_timestamps,
        has_feedback=plan.has_feedback,
        dropped={reason: count for reason, count in reasons.items() if count},
        notes={
            "validation_queries_without_history": counts.queries_without_history[1],
            "test_queries_without_history": counts.queries_without_history[2],
            **notes,
        },
        user_attributes=tuple(each.attribute for each in attributes["user"]),
        item_attributes=tuple(each.attribute for each in attributes["item"]),
        source={**source, "duckdb": duckdb.__version__},
        parent_digest=None if parent is None else parent.digest,
        files=files,
        digest=combined_digest(files),
    )
