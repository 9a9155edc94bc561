"""Histories as slices, against their definition: ties, limits, kinds, splits, no times."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.definitions import Event, by_user, holds, is_left_out, last, others
from trainer.base.split_names import SPLITS
from trainer.data.events.event_reader import EventRows
from trainer.data.events.histories import (
    NAMES,
    Draw,
    before_events,
    held_out,
    known_by_now,
    users_asked,
)
from trainer.data.jagged import Jagged, Ranges
from trainer.data.schema import SIGNAL

LIMITS = (0, 1, 3, 50)
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def some_events(draw: st.DrawFn, timed: bool) -> list[Event]:
    """Events of some users of any feedback and split, in order; items may come again."""
    found = []
    for user in sorted(draw(st.sets(st.integers(0, 9), max_size=4))):
        number = draw(st.integers(1, 9))
        times = sorted(draw(st.lists(st.integers(-2, 3), min_size=number, max_size=number)))
        for place, time in enumerate(times):
            found.append(
                Event(
                    user,
                    draw(st.integers(0, 6)) if timed else place,
                    draw(st.sampled_from((1, 1, -1, 0, SIGNAL))),
                    draw(st.sampled_from(SPLITS)),
                    time if timed else None,
                    place,
                )
            )
    return found


def rows_of(events: list[Event], timed: bool) -> EventRows:
    users = sorted({each.user for each in events})
    lengths = [sum(each.user == user for each in events) for user in users]
    return EventRows(
        np.array(users, dtype=np.int64),
        np.cumsum([0, *lengths]),
        np.array([each.item for each in events], dtype=np.int32),
        np.zeros(len(events), dtype=np.int8),
        np.array([each.feedback for each in events], dtype=np.int8),
        np.array([SPLITS.index(each.split) for each in events], dtype=np.int8),
        np.array([each.time for each in events], dtype=np.int64) if timed else None,
    )


def bags(found: Ranges | Jagged) -> list[tuple[int, ...]]:
    starts = found.start if isinstance(found, Ranges) else found.offsets[:-1]
    stops = found.stop if isinstance(found, Ranges) else found.offsets[1:]
    pairs = zip(starts.tolist(), stops.tolist(), strict=True)
    assert all(0 <= a <= b <= len(found.values) for a, b in zip(starts, stops, strict=True))
    return [tuple(found.values[start:stop].tolist()) for start, stop in pairs]


@SETTINGS
@given(some_events(timed=True), st.sampled_from(LIMITS), st.sampled_from(((0,), (0, 1), (0, 2))))
def test_with_times_a_history_is_what_came_before(
    events: list[Event], limit: int, numbers: tuple[int, ...]
) -> None:
    rows, splits = rows_of(events, True), tuple(SPLITS[each] for each in numbers)
    pool_E = np.isin(rows.split_E, numbers)
    event_n = np.flatnonzero(pool_E)
    own = by_user(events)
    for name in NAMES:
        found = before_events(rows, event_n, name, pool_E, limit, Draw(0, 0))
        expected = [
            last(others(events[place], own[events[place].user], splits, name), limit)
            for place in event_n
        ]
        assert bags(found) == expected


@SETTINGS
@given(some_events(timed=False), st.sampled_from(LIMITS), st.integers(0, 3))
def test_without_times_a_history_is_a_part_of_the_other_events(
    events: list[Event], limit: int, epoch: int
) -> None:
    """In the user's own order, begun behind the event: with all of them, all others."""
    rows = rows_of(events, False)
    pool_E = rows.split_E == 0
    event_n = np.flatnonzero(pool_E)
    own = by_user(events)
    for name in NAMES:
        found = bags(before_events(rows, event_n, name, pool_E, limit, Draw(5, epoch)))
        again = bags(before_events(rows, event_n, name, pool_E, limit, Draw(5, epoch)))
        assert found == again
        for place, bag in zip(event_n, found, strict=True):
            event = events[place]
            pool = others(event, own[event.user], ("train",), name)
            behind = [e.item for e in pool if e.place > event.place]
            ahead = [e.item for e in pool if e.place < event.place]
            order = behind + ahead
            assert len(bag) == min(limit, len(order))
            ranges = [tuple(order[at : at + len(bag)]) for at in range(len(order) + 1)]
            assert bag in ranges


def test_every_part_is_drawn_alike_over_epochs() -> None:
    """Chi-square over the starts of a history of 2 of 5 others, each of them a quarter."""
    events = [Event(7, item, 1, "train", None, item) for item in range(6)]
    rows, everything = rows_of(events, False), np.ones(6, dtype=bool)
    starts: Counter[int] = Counter()
    epochs = 2000
    for epoch in range(epochs):
        (bag,) = bags(before_events(rows, np.array([2]), "history", everything, 2, Draw(1, epoch)))
        starts[bag[0]] += 1
    assert {*starts} == {3, 4, 5, 0}
    square = sum((count - epochs / 4) ** 2 / (epochs / 4) for count in starts.values())
    assert square < 16.3  # 3 degrees of freedom, one in a thousand
    other = [
        bags(before_events(rows, np.array([2]), "history", everything, 2, Draw(seed, 0)))
        for seed in range(30)
    ]
    assert len({each[0] for each in other}) == 4


@SETTINGS
@given(
    st.booleans().flatmap(lambda timed: st.tuples(st.just(timed), some_events(timed))),
    st.sampled_from(LIMITS),
    st.sampled_from((1, 2)),
    st.booleans(),
)
def test_held_out(
    given_events: tuple[bool, list[Event]], limit: int, number: int, by_time: bool
) -> None:
    timed, events = given_events
    rows, split = rows_of(events, timed), SPLITS[number]
    found = held_out(rows, number, by_time, limit)
    expected: list[tuple[Any, ...]] = []
    for user, own in by_user(events).items():
        inside = [each for each in own if each.split == split]
        if not any(each.feedback == 1 for each in inside):
            continue
        known = earlier = [each for each in own if SPLITS.index(each.split) < number]
        if by_time and timed:
            start = min(each.time for each in inside if each.time is not None)
            earlier = [each for each in known if each.time is not None and each.time < start]
        expected.append(
            (
                user,
                tuple(each.item for each in inside if each.feedback == 1),
                tuple(each.item for each in inside if each.feedback < 0),
                tuple(sorted({each.item for each in known if is_left_out(each)})),
                *(last([each for each in earlier if holds(name, each)], limit) for name in NAMES),
            )
        )
    lists = (
        found.targets, found.disliked_targets, found.seen, found.history, found.disliked
    )  # fmt: skip
    got = list(zip(found.user_Q.tolist(), *map(bags, lists), strict=True))
    assert got == expected
    assert rows.user_R[users_asked(rows, number)].tolist() == [each[0] for each in expected]
    turned = found.take(np.arange(len(expected))[::-1])
    assert turned.user_Q.tolist() == [each[0] for each in expected][::-1]
    assert bags(turned.seen) == [each[3] for each in expected][::-1]


@SETTINGS
@given(some_events(timed=True), st.sampled_from(LIMITS))
def test_known_by_now_is_everything(events: list[Event], limit: int) -> None:
    own = by_user(events)
    history, disliked, seen = map(bags, known_by_now(rows_of(events, True), limit))
    for name, found in (("history", history), ("disliked", disliked)):
        expected = [last([e for e in each if holds(name, e)], limit) for each in own.values()]
        assert found == expected
    assert seen == [
        tuple(sorted({e.item for e in each if is_left_out(e)})) for each in own.values()
    ]


@pytest.mark.parametrize("timed", [True, False])
def test_no_events_at_all(timed: bool) -> None:
    rows = rows_of([], timed)
    none = np.empty(0, dtype=np.int64)
    assert bags(before_events(rows, none, "history", none.astype(bool), 3, Draw(0, 0))) == []
    assert len(held_out(rows, 2, True, 3).user_Q) == 0
    assert [bags(each) for each in known_by_now(rows, 3)] == [[], [], []]
