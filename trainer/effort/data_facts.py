"""What rules and proposals ask of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.data.features import read_counts
from trainer.data.schema import Dataset


@dataclass(frozen=True)
class DataFacts:
    """A dataset in a few numbers."""

    rows: int
    """Training rows of what is liked."""
    users: int
    items: int
    has_order: bool
    """Whether what comes first is known, and histories are kept."""
    new_share: float
    """Share of what validation looks for whose items are in no training row; 0 where no item has
    attributes, so that nothing could be told of them."""
    item_attributes: bool
    user_attributes: bool
    context: bool

    @property
    def rows_a_user(self) -> float:
        return self.rows / self.users


def facts_of(dataset: Dataset) -> DataFacts:
    """Read from dataset.json, and from items.parquet where items have attributes."""
    return DataFacts(
        rows=dataset.splits["train"].positives,
        users=dataset.num_users,
        items=dataset.num_items,
        has_order=dataset.has_timestamps and dataset.history_length > 0,
        new_share=_new_share(dataset) if dataset.item_attributes else 0.0,
        item_attributes=bool(dataset.item_attributes),
        user_attributes=bool(dataset.user_attributes),
        context=bool(dataset.context_attributes),
    )


def _new_share(dataset: Dataset) -> float:
    count_I = read_counts(dataset, "item", "count")
    held_out_I = read_counts(dataset, "item", "count_with_validation").astype(np.int64) - count_I
    asked = int(held_out_I.sum())
    return float(np.sum(held_out_I, where=count_I == 0)) / asked if asked else 0.0
