"""A partition's rows that are kept: one a user, item and group of kinds, none neutral, in order.

Liked and disliked are one group (the last rating counts), each kind of signals is one of its own.

Rows are put in order of user and time once; what falls out and what is held out are marks in that
order, so that another column of an event (`more`) is only taken along.

Shapes: E = rows of the partition, P = pairs of user and item (and group), U = users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.events.event_files import Events, joined_events
from trainer.data.events.event_reader import feedback_of
from trainer.data.schema import Dataset, Kind
from trainer.prepare.partitions.event_windows import EARLIER, KnownBefore, known_before
from trainer.prepare.partitions.partition_plan import PartitionPlan
from trainer.prepare.partitions.sorting import begins_of, order_by
from trainer.prepare.partitions.splits import Hashes, split_of
from trainer.prepare.partitions.staged_rows import UNKNOWN, StagedRows, read_staged
from trainer.sources import sql


@dataclass(frozen=True)
class KeptRows:
    """A partition's events by user and time, those that its windows carry among them."""

    events: Events
    window_E: np.ndarray
    """The window of each event; EARLIER for what the dataset that is appended to has."""
    duplicates: int
    """Rows that fell out."""
    neutral: int


def keep_rows(hashes: Hashes, plan: PartitionPlan, part: int) -> KeptRows:
    """The events of a partition as they are to be written, and how many rows fell out."""
    group_K = groups_of(plan.kinds)
    staged_rows = read_staged(plan.staging, part)
    rows, place_P = one_a_pair(staged_rows, group_K, plan.keep, plan.starts)
    staged = len(rows.user_E)
    neutral = int(np.count_nonzero(rows.kind_E[place_P] == UNKNOWN))
    place_P = _first_that_counts(rows, place_P, group_K)
    before = None
    if plan.parent is not None:
        parent = Dataset.load(plan.parent, verify="none")
        group_P = group_K[rows.kind_E[place_P]]
        before = known_before(parent, rows.user_E[place_P], rows.item_E[place_P], group_P, group_K)
        place_P = place_P[~before.is_known_P]
    if plan.has_timestamps:
        place_P.sort()
        rows = rows.take(place_P)
    else:
        rows = rows.take(place_P)
        rows = rows.take(_places_without_time(rows, plan.rule.seed, hashes))
    window_E = windows_of(rows.moment_E, plan.starts)
    events = Events(
        rows.user_E,
        rows.item_E,
        rows.kind_E,
        _splits(rows, window_E == plan.windows - 1, plan, before, hashes),
        rows.moment_E if plan.has_timestamps else None,
        more=rows.more,
    )
    if before is not None and before.last is not None:
        events, window_E = _with_earlier(before.last, events, window_E)
    return KeptRows(events, window_E, staged - neutral - len(rows.user_E), neutral)


def groups_of(kinds: Sequence[Kind]) -> np.ndarray:
    """By kind, the group of which a user has one event an item, int8; last, 0 for UNKNOWN."""
    own = range(1, len(kinds) + 1)
    together = [kind.role in ("positive", "negative") for kind in kinds]
    return np.array([*np.where(together, 0, own), 0], dtype=np.int8)


def one_a_pair(
    rows: StagedRows, group_K: np.ndarray, keep: str, starts: Sequence[int]
) -> tuple[StagedRows, np.ndarray]:
    """The rows by user and time; the places of one of each user, item, group and window, in that
    order.

    keep: which row of a window stays, first or last. One that the source has in train goes before
    one of a held-out part. `old_E` of the one that stays is the lowest of all of them.
    """
    rows = rows.take(order_by(rows.user_E, rows.moment_E, rows.position_E))
    window_E = windows_of(rows.moment_E, starts)
    group_E = group_K[rows.kind_E]
    keys = rows.user_E, rows.item_E, group_E, window_E, np.maximum(rows.given_E, 0)
    if keep == "last":
        order_E = len(window_E) - 1 - order_by(*(key[::-1] for key in keys))
    else:
        order_E = order_by(*keys)
    begins_E = begins_of(*(key[order_E] for key in keys[:4]))
    begin_P = np.flatnonzero(begins_E)
    place_P = order_E[begin_P]
    if (rows.old_E >= 0).any():  # UNKNOWN is above all others as an unsigned number
        lowest_P = np.minimum.reduceat(rows.old_E.view(np.uint8)[order_E], begin_P)
        rows.old_E[place_P] = lowest_P.view(np.int8)
    return rows, place_P


def windows_of(moment_E: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """The window of each moment, int16: those before the first window are of it too."""
    if len(starts) < 2:
        return np.zeros(len(moment_E), dtype=np.int16)
    found = np.searchsorted(np.asarray(starts), moment_E, side="right") - 1
    return np.maximum(found, 0).astype(np.int16)


def _first_that_counts(rows: StagedRows, place_P: np.ndarray, group_K: np.ndarray) -> np.ndarray:
    """The pairs that are not neutral, each in the first window alone."""
    place_P = place_P[rows.kind_E[place_P] != UNKNOWN]
    group_P = group_K[rows.kind_E[place_P]]
    return place_P[begins_of(rows.user_E[place_P], rows.item_E[place_P], group_P)]


def _places_without_time(rows: StagedRows, seed: int, hashes: Hashes) -> np.ndarray:
    """The order of users' rows where there are no times.

    Of user, item and seed alone: the order of the source's rows tells of the items (files are
    sorted by time, by item, by rating) and is lost. Another order than the split's is.
    """
    hash_E = hashes.of(f"user, item, {sql.literal(seed)}, 'place'", rows.user_E, rows.item_E)
    return order_by(rows.user_E, hash_E)


def _splits(
    rows: StagedRows,
    newest_E: np.ndarray,
    plan: PartitionPlan,
    before: KnownBefore | None,
    hashes: Hashes,
) -> np.ndarray:
    """The splits of the newest window's rows by the rule; all others are train, int8."""
    begins_E = begins_of(rows.user_E)
    place_E = np.cumsum(begins_E) - 1
    liked_E = feedback_of(plan.kinds)[rows.kind_E] == 1
    liked_U = np.bincount(place_E[~newest_E & liked_E], minlength=np.count_nonzero(begins_E))
    if before is not None:
        liked_U += before.positives_U[np.searchsorted(before.user_U, rows.user_E[begins_E])]
    split_E = np.zeros(len(newest_E), dtype=np.int8)
    split_E[newest_E] = split_of(
        plan.rule, rows.take(newest_E), liked_E[newest_E], liked_U[place_E[newest_E]], hashes
    )
    return split_E


def _with_earlier(
    earlier: Events, events: Events, window_E: np.ndarray
) -> tuple[Events, np.ndarray]:
    """The events with their users' earlier ones; of one time, those come first."""
    earlier = earlier.take(np.isin(earlier.user_E, events.user_E))
    window_E = np.append(np.full(len(earlier.user_E), EARLIER, dtype=np.int16), window_E)
    events = joined_events([earlier, events])
    assert events.time_E is not None
    order_E = order_by(events.user_E, events.time_E)
    return events.take(order_E), window_E[order_E]
