"""Histories: slices of a user's own events. Training, evaluation and recommending make them here.

Where data have times, the history of an event is the last H of its user's events that are strictly
earlier, ties left out. Where they have none, a user's events lie in a random order of their own and
histories are exchangeable: a training event sees a random min(H, n - 1) of the user's other ones,
drawn anew in every epoch; a query sees min(H, n) of all.

`history` holds liked events, signals and those that are for histories alone, `disliked` the others.
Items liked and disliked are left out of what comes later; what one merely looked at is not.

Shapes: R = users, E = their events, n = events asked for, Q = users asked for, H = longest history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from trainer.data.candidates import hash_counter, hash_key
from trainer.data.events.event_rows import EventRows
from trainer.data.events.marks import Marks, marked_items
from trainer.data.jagged import Jagged, Ranges, concatenate, offsets_of, take_bags, take_ranges

NAMES = ("history", "disliked")


@dataclass(frozen=True)
class Draw:
    """What random histories are drawn for: an event draws the same on every rank."""

    seed: int
    epoch: int


def in_list(rows: EventRows, name: str, marks: Marks | None = None) -> np.ndarray:
    """Which events a list may hold, bool [E]."""
    if name == "history" and marks is not None and marks.dislikes:
        return np.ones(len(rows.item_E), dtype=bool)
    return rows.feedback_E < 0 if name == "disliked" else rows.feedback_E >= 0


def before_events(
    rows: EventRows,
    event_n: np.ndarray,
    name: str,
    pool_E: np.ndarray,
    limit: int,
    draw: Draw,
    marks: Marks | None = None,
) -> Ranges:
    """The list `name` of each event, n of them: at most `limit` events of the pool.

    Args:
        event_n: places among the E events.
        pool_E: which events may be seen at all, bool.
        draw: for data without times.
        marks: what items of "history" carry.
    """
    held_E = pool_E & in_list(rows, name, marks)
    before = offsets_of(held_E)
    values = marked_items(rows, held_E, marks if name == "history" else None)
    begin_n = rows.offsets_R[rows.row_E[event_n]]
    if rows.time_E is not None:
        stop_n = before[rows.first_of_moment_E[event_n]]
        return Ranges(values, np.maximum(before[begin_n], stop_n - limit), stop_n)
    first_R, end_R = before[rows.offsets_R[:-1]], before[rows.offsets_R[1:]]
    # Every user's events twice, one after the other: what follows the last is the first.
    twice = take_ranges(values, np.repeat(first_R, 2), np.repeat(end_R, 2)).values
    own_n = held_E[event_n].astype(np.int64)
    others_n = (end_R - first_R)[rows.row_E[event_n]] - own_n
    taken_n = np.minimum(others_n, limit)
    key_n = rows.user_R[rows.row_E[event_n]] << 32 ^ rows.item_E[event_n].astype(np.int64)
    random_n = hash_counter(hash_key(draw.seed, draw.epoch), key_n)
    skipped_n = (random_n % (others_n - taken_n + 1).astype(np.uint64)).astype(np.int64)
    start_n = before[begin_n] + before[event_n] + own_n + skipped_n
    return Ranges(twice, start_n, start_n + taken_n)


def cut_into_chunks(lists: Ranges, length: int) -> Ranges:
    """Whole lists of what lies before each event, cut to where the event's chunk begins.

    A list of up to `length` events is one chunk. Of a longer one each further half of `length`
    events are targets of a chunk of their own, which begins so that none of them sees more than
    `length` and each sees at least half of that: every event is a target once, and about half of
    the tokens are read twice.
    """
    stride = max(length // 2, 1)
    beyond_n = np.maximum(lists.stop - lists.start - length, 0)
    return Ranges(lists.values, lists.start + -(-beyond_n // stride) * stride, lists.stop)


@dataclass(frozen=True)
class HeldOut:
    """What a split holds out of some users, and what is known of them before it."""

    user_Q: np.ndarray
    """Users with a positive event in the split, int64."""
    targets: Jagged
    """Items liked in the split."""
    disliked_targets: Jagged
    seen: Jagged
    """Items liked and disliked in earlier splits, sorted."""
    history: Jagged
    """Those that a history may hold, oldest first, at most H."""
    disliked: Jagged
    context: Mapping[str, np.ndarray]
    """Of the first target, by column, [Q]."""

    def take(self, query_q: np.ndarray) -> HeldOut:
        """Some of the queries, in the order asked for."""
        lists = {name: take_bags(getattr(self, name), query_q) for name in QUERY_LISTS}
        context = {name: values[query_q] for name, values in self.context.items()}
        return HeldOut(self.user_Q[query_q], **lists, context=context)


QUERY_LISTS = tuple(each.name for each in fields(HeldOut) if each.name not in ("user_Q", "context"))


def all_of(parts: Sequence[HeldOut]) -> HeldOut:
    """All queries, in the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    lists = {name: concatenate([getattr(part, name) for part in parts]) for name in QUERY_LISTS}
    context = {
        name: np.concatenate([part.context[name] for part in parts]) for name in parts[0].context
    }
    return HeldOut(np.concatenate([part.user_Q for part in parts]), **lists, context=context)


def users_asked(rows: EventRows, split: int) -> np.ndarray:
    """Users with a positive event in a split, bool [R]."""
    asked_R = np.zeros(len(rows.user_R), dtype=bool)
    asked_R[rows.row_E[(rows.split_E == split) & (rows.feedback_E == 1)]] = True
    return asked_R


def held_out(
    rows: EventRows, split: int, by_time: bool, limit: int, marks: Marks | None = None
) -> HeldOut:
    """The queries of a split.

    Args:
        split: 1 validation, 2 test.
        by_time: histories end before the first held-out event.
        marks: what items of histories carry.
    """
    in_split_E = rows.split_E == split
    asked_R = users_asked(rows, split)
    of_asked_E = asked_R[rows.row_E]
    known_E = (rows.split_E < split) & of_asked_E
    earlier_E = known_E & _before_split(rows, split, by_time)
    target_E = in_split_E & (rows.feedback_E == 1)
    first_Q = np.flatnonzero(target_E)
    first_Q = first_Q[np.unique(rows.row_E[first_Q], return_index=True)[1]]
    return HeldOut(
        rows.user_R[asked_R],
        _bags(rows, target_E, asked_R),
        _bags(rows, in_split_E & (rows.feedback_E < 0) & of_asked_E, asked_R),
        _sorted_bags(rows, known_E & _is_left_out(rows), asked_R),
        _last(_bags(rows, earlier_E & in_list(rows, "history", marks), asked_R, marks), limit),
        _last(_bags(rows, earlier_E & in_list(rows, "disliked"), asked_R), limit),
        {name: rows.more[name][first_Q] for name in rows.more if name.startswith("context.")},
    )


def _is_left_out(rows: EventRows) -> np.ndarray:
    """Events whose items are in no later ranking of their user, bool [E]."""
    rated_E: np.ndarray = np.abs(rows.feedback_E) == 1
    return rated_E | np.isin(rows.kind_E, rows.seen_kinds) if rows.seen_kinds else rated_E


def count_cold(rows: EventRows, split: int, by_time: bool, limit: int) -> int:
    """Queries of a split whose history is empty; as `held_out`, which makes them."""
    asked_R = users_asked(rows, split)
    if limit == 0:
        return int(np.count_nonzero(asked_R))
    warm_E = _before_split(rows, split, by_time) & in_list(rows, "history")
    asked_R[rows.row_E[warm_E]] = False
    return int(np.count_nonzero(asked_R))


def _before_split(rows: EventRows, split: int, by_time: bool) -> np.ndarray:
    """Events of earlier splits; by time those before the user's first in the split. Bool [E]."""
    earlier_E = rows.split_E < split
    if by_time and rows.time_E is not None:
        in_split_E = rows.split_E == split
        start_R = np.full(len(rows.user_R), np.iinfo(np.int64).max)
        np.minimum.at(start_R, rows.row_E[in_split_E], rows.time_E[in_split_E])
        earlier_E &= rows.time_E < start_R[rows.row_E]
    return earlier_E


def known_by_now(
    rows: EventRows, limit: int, marks: Marks | None = None
) -> tuple[Jagged, Jagged, Jagged]:
    """(history, disliked, seen) of every user, out of all of the events."""
    everybody_R = np.ones(len(rows.user_R), dtype=bool)
    history, disliked = (
        _last(_bags(rows, in_list(rows, name, marks), everybody_R, carried), limit)
        for name, carried in zip(NAMES, (marks, None), strict=True)
    )
    return history, disliked, _sorted_bags(rows, _is_left_out(rows), everybody_R)


def _bags(
    rows: EventRows, chosen_E: np.ndarray, asked_R: np.ndarray, marks: Marks | None = None
) -> Jagged:
    """Items of the chosen events, a bag a user asked for; no other user has chosen ones."""
    offsets = offsets_of(chosen_E)[rows.offsets_R]
    length_R = np.diff(offsets)
    return Jagged(marked_items(rows, chosen_E, marks), offsets_of(length_R[asked_R]))


def _sorted_bags(rows: EventRows, chosen_E: np.ndarray, asked_R: np.ndarray) -> Jagged:
    """The same ascending, each item once."""
    row_n, item_n = rows.row_E[chosen_E], rows.item_E[chosen_E]
    order_n = np.lexsort((item_n, row_n))
    row_n, item_n = row_n[order_n], item_n[order_n]
    new_n = np.ones(len(item_n), dtype=bool)
    new_n[1:] = (row_n[1:] != row_n[:-1]) | (item_n[1:] != item_n[:-1])
    length_R = np.bincount(row_n[new_n], minlength=len(asked_R))
    return Jagged(item_n[new_n], offsets_of(length_R[asked_R]))


def _last(bags: Jagged, limit: int) -> Jagged:
    """The last `limit` values of each bag."""
    stop = bags.offsets[1:]
    return take_ranges(bags.values, np.maximum(bags.offsets[:-1], stop - limit), stop)
