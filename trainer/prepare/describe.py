"""dataset.json of a dataset that was just made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from trainer.data.events.event_files import part_file, splits_of
from trainer.data.events.event_reader import EventReader
from trainer.data.schema import (
    DISLIKED,
    LIKED,
    SCHEMA_VERSION,
    Dataset,
    EventWindow,
    combined_digest,
    record_of,
)
from trainer.prepare.features.attributes import Encoded
from trainer.prepare.features.shared_rows import DealtRows, told
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan
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
    window_rule: str | None,
    dealt: Mapping[str, DealtRows],
) -> Dataset:
    """dataset.json's contents."""
    appended = None if plan.parent is None else parent
    before = () if appended is None else appended.windows
    count_SK = counts.count_WSK.sum(axis=0)
    splits = splits_of(count_SK, plan.kinds, counts.asked_S)
    if appended is not None and not count_SK.any():
        splits = appended.splits
    elif appended is not None:
        count_SK[0] += EventReader(appended).count_GSK.sum(axis=(0, 1))
        splits = splits_of(count_SK, plan.kinds, counts.asked_S)
    kept = set() if appended is None else set(appended.event_names)
    if parent is not None:
        kept |= {file.file for each in parent.attributes.values() for file in each.vectors}
    names = sorted(
        str(each.relative_to(partial))
        for each in partial.rglob("*")
        if each.suffix in (".parquet", ".f16", ".f32")
    )
    files = {
        name: parent.files[name]
        if parent is not None and name in kept
        else record_of(partial, name)
        for name in names
    }
    reasons = Counter({**dropped, "duplicate": counts.duplicates, "neutral_rating": counts.neutral})
    reasons.update({} if parent is None else parent.dropped)
    return Dataset(
        path=str(partial),
        schema_version=SCHEMA_VERSION,
        num_users=catalog.num_users,
        num_items=catalog.num_items,
        window_rule=window_rule,
        windows=(*before, *_windows(partial, plan, counts)),
        kinds=plan.kinds,
        splits=splits,
        split_rule={key: value for key, value in asdict(plan.rule).items() if value is not None},
        history_length=plan.history_length,
        has_timestamps=plan.has_timestamps,
        dropped={reason: count for reason, count in reasons.items() if count},
        notes={
            "validation_queries_without_history": int(counts.cold_S[1]),
            "test_queries_without_history": int(counts.cold_S[2]),
            **_of_kinds(plan, count_SK),
            **told(dealt),
            **notes,
        },
        user_attributes=tuple(each.attribute for each in attributes["user"]),
        item_attributes=tuple(each.attribute for each in attributes["item"]),
        context_attributes=plan.context,
        has_weights=plan.has_weights,
        source={**source, "duckdb": duckdb.__version__},
        parent_digest=None if parent is None else parent.digest,
        files=files,
        digest=combined_digest(files),
        ancestors=() if parent is None else parent.lineage[:-1],
        table_rows={side: each.table for side, each in dealt.items()},
    )


def _of_kinds(plan: PartitionPlan, count_SK: np.ndarray) -> dict[str, int]:
    """Events of each kind, where the source names kinds."""
    if set(plan.kinds) <= {LIKED, DISLIKED}:
        return {}
    counted = zip(plan.kinds, count_SK.sum(axis=0).tolist(), strict=True)
    return {f"events_{kind.name}": count for kind, count in counted}


def _windows(partial: Path, plan: PartitionPlan, counts: PartitionCounts) -> Iterator[EventWindow]:
    """The windows that have events."""
    for window, users in enumerate(counts.users_W.tolist()):
        names = [part_file(plan.first_window + window, part) for part in range(plan.parts)]
        if users or (plan.parent is None and plan.windows == 1):
            yield EventWindow(
                tuple(name for name in names if (partial / name).exists()),
                users,
                int(counts.count_WSK[window].sum()),
                int(counts.first_W[window]) if plan.has_timestamps and users else None,
                int(counts.last_W[window]) if plan.has_timestamps and users else None,
            )
