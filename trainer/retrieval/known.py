"""What is known of users today: all their events, of every split.

Recommending and exporting take histories up to the present; evaluation takes them as they were at
the split's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.base.split_names import SPLITS
from trainer.data.events.event_reader import EventReader
from trainer.data.events.event_rows import EventRows, joined
from trainer.data.events.histories import known_by_now
from trainer.data.events.marks import Marks
from trainer.data.jagged import spread, take_bags
from trainer.data.schema import Dataset
from trainer.retrieval.search.item_lists import ItemLists


@dataclass(frozen=True)
class KnownUsers:
    """Users first..first + n - 1, all of them, also those without a single interaction."""

    first: int
    history: ItemLists
    """Liked items, oldest first, the last `history_length` of them."""
    disliked: ItemLists
    """Disliked items likewise."""
    seen: ItemLists
    """All items, sorted."""


def known_at(dataset: Dataset, rows: Sequence[int], marks: Marks | None = None) -> KnownUsers:
    """Users of any rows, in their order; `first` is -1.

    Reads the row groups that hold them.
    """
    reader = EventReader(dataset)
    wanted = np.array(rows, dtype=np.int64)
    first_G, last_G = reader.users_G2.T
    order = np.sort(wanted)
    within_G = np.searchsorted(order, first_G) < np.searchsorted(order, last_G, side="right")
    parts = []
    for group in np.flatnonzero(within_G):
        found = reader.read(int(group))
        parts.append(found.of(np.isin(found.user_R, wanted)))
    return _spread(joined(parts), dataset.history_length, wanted, -1, marks)


def known_users(
    dataset: Dataset,
    first: int,
    stop: int,
    block_size: int,
    splits: Sequence[str] = SPLITS,
    marks: Marks | None = None,
) -> Iterator[KnownUsers]:
    """Users first..stop-1 in blocks of `block_size`, in one pass over the row groups of theirs.

    Args:
        splits: whose events are known.
        marks: what items of histories carry.
    """
    reader, numbers = EventReader(dataset), [SPLITS.index(split) for split in splits]
    for start in range(first, stop, block_size):
        end = min(start + block_size, stop)
        rows = reader.of_users(start, end)
        if len(numbers) < len(SPLITS):
            rows = rows.only(np.isin(rows.split_E, numbers))
        yield _spread(rows, dataset.history_length, np.arange(start, end), start, marks)


def _spread(
    rows: EventRows, limit: int, user_n: np.ndarray, first: int, marks: Marks | None
) -> KnownUsers:
    """What is known of some users, where `rows` hold the events of those who have any."""
    place_n = np.searchsorted(rows.user_R, user_n).clip(max=max(len(rows.user_R) - 1, 0))
    known_n = np.zeros(len(user_n), dtype=bool)
    if len(rows.user_R):
        known_n = rows.user_R[place_n] == user_n
    return KnownUsers(
        first,
        *(
            ItemLists.from_jagged(spread(take_bags(bags, place_n[known_n]), known_n))
            for bags in known_by_now(rows, limit, marks)
        ),
    )
