"""What a partition is told, and what it counts: plain values that go to a worker and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from trainer.data.feature_types import Attribute
from trainer.data.schema import Kind
from trainer.prepare.partitions.splits import SplitRule


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
    """Which of repeated (user, item) rows of a window stays: first or last."""
    context: tuple[Attribute, ...] = ()
    """Of events."""
    has_weights: bool = False
    """Staged rows have a weight each."""
    starts: tuple[int, ...] = ()
    """First moments of several windows; none: the rows are one window."""
    first_window: int = 0
    """Number of the first of them in the dataset."""
    parent: str | None = None
    """The dataset that the windows are appended to."""

    @property
    def windows(self) -> int:
        """Windows that the rows are dealt into."""
        return max(1, len(self.starts))


@dataclass(frozen=True)
class PartitionCounts:
    """Counts of one partition, added up over all."""

    duplicates: int
    neutral: int
    users_W: np.ndarray
    """Users of each window, int64."""
    count_WSK: np.ndarray
    """Events by window, split and kind, int64."""
    first_W: np.ndarray
    """First and last moment of each window, int64; the largest and smallest number where none."""
    last_W: np.ndarray
    asked_S: np.ndarray
    """Users with a positive in each split of the newest window, int64 [3]."""
    cold_S: np.ndarray
    """Those of validation and test without a history."""

    def __add__(self, other: PartitionCounts) -> PartitionCounts:
        mine, theirs = vars(self), vars(other)
        together = {name: mine[name] + theirs[name] for name in mine}
        together["first_W"] = np.minimum(self.first_W, other.first_W)
        together["last_W"] = np.maximum(self.last_W, other.last_W)
        return PartitionCounts(**together)


def total(counts: list[PartitionCounts]) -> PartitionCounts:
    """The sum of the partitions' counts."""
    return reduce(add, counts)
