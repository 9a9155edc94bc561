"""Rows by the kernel are those of numpy: ties, kinds, splits, weights, limits, chunks, windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.kernels.native import library_of
from trainer.base.mistake import Mistake
from trainer.data.events.event_rows import EventRows
from trainer.data.events.histories import NAMES, Draw
from trainer.data.jagged import Ranges, take_ranges
from trainer.loader import row_table
from trainer.loader.row_table import SOURCE, RowTable, Wanted, WindowRows

needs_compiler = pytest.mark.skipif(library_of(SOURCE)[0] is None, reason="no compiler")
SETTINGS = settings(max_examples=80, deadline=None, derandomize=True, database=None)
DRAW = Draw(0, 0)


def some_rows(seed: int, users: int = 6, timed: bool = True) -> EventRows:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 8, users)
    offsets, events = np.append(0, np.cumsum(lengths)), int(lengths.sum())
    times = [np.sort(random.integers(0, 5, each)) for each in lengths]
    return EventRows(
        np.sort(random.choice(100, users, replace=False)),
        offsets,
        random.integers(0, 50, events).astype(np.int32),
        random.integers(0, 3, events).astype(np.int8),
        random.choice(np.array([1, 1, -1, 0, 2], dtype=np.int8), events),
        random.choice(np.array([0, 0, 0, 1, 2], dtype=np.int8), events),
        np.concatenate([np.empty(0, dtype=np.int64), *times]) if timed else None,
        random.random(events) < 0.2 if seed % 2 else None,
        {
            "context.hour": random.integers(0, 24, events),
            **({"weight": random.random(events).astype(np.float32)} if seed % 3 else {}),
        },
    )


def table_of(groups: list[EventRows], wanted: Wanted, narrow: bool = True) -> WindowRows:
    """The groups' rows, in the order of their events."""
    numbers = [len(row_table.rows_by_numpy(each, wanted, DRAW).user_n) for each in groups]
    table = RowTable(sum(numbers), wanted.lists, narrow)
    for each, number in zip(groups, numbers, strict=True):
        assert table.add_rows_of(each, wanted, number, DRAW) == number
    return table.ordered(np.arange(sum(numbers)))


def assert_same(one: WindowRows, other: WindowRows) -> None:
    for name in ("user_n", "item_n", "feedback_n", "weight_n"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    for name in one.lists:
        a, b = (take_ranges(*each.lists[name]) for each in (one, other))
        np.testing.assert_array_equal(a.values, b.values, name)
        np.testing.assert_array_equal(a.offsets, b.offsets, name)
    for name in one.context:
        np.testing.assert_array_equal(one.context[name], other.context[name], name)


@needs_compiler
@SETTINGS
@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([0, 1, 3, 50]),
    st.sampled_from([None, None, 1, 2, 5]),
    st.sampled_from([(0,), (0, 1), (2,)]),
    st.sampled_from([(), ("history",), ("disliked",), NAMES]),
)
def test_rows_are_those_of_numpy(
    seeds: list[int],
    positives_only: bool,
    limit: int,
    chunk: int | None,
    splits: tuple[int, ...],
    lists: tuple[str, ...],
) -> None:
    weights = np.array([1, 3, 0.5], dtype=np.float32)
    wanted = Wanted(splits, lists, positives_only, weights, limit, chunk, ("context.hour",))
    groups = [some_rows(seed) for seed in seeds]
    fast = table_of(groups, wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_table, "_kernel", lambda: None)
        assert_same(fast, table_of(groups, wanted))
    assert_same(fast, table_of(groups, wanted, narrow=False))


WANTED = Wanted((0,), NAMES, False, np.ones(3, dtype=np.float32), 9, None)


def test_without_times_rows_are_those_of_numpy() -> None:
    rows = some_rows(4, timed=False)
    assert_same(table_of([rows], WANTED), row_table.rows_by_numpy(rows, WANTED, DRAW))


def test_rows_in_an_order() -> None:
    groups = [some_rows(1), some_rows(2)]
    plain, order = table_of(groups, WANTED), np.random.default_rng(0)
    numbers = [len(row_table.rows_by_numpy(each, WANTED, DRAW).user_n) for each in groups]
    table = RowTable(sum(numbers), NAMES, narrow=True)
    for each, number in zip(groups, numbers, strict=True):
        table.add_rows_of(each, WANTED, number, DRAW)
    permutation = order.permutation(sum(numbers))
    found = table.ordered(permutation)
    np.testing.assert_array_equal(found.item_n, plain.item_n[permutation])
    for name in NAMES:
        values, start, stop = plain.lists[name]
        expected = take_ranges(values, start[permutation], stop[permutation])
        np.testing.assert_array_equal(take_ranges(*found.lists[name]).values, expected.values)


@pytest.mark.parametrize("expected", [0, 1, 1000])
def test_a_group_of_other_size_than_expected_is_not_written(expected: int) -> None:
    rows = some_rows(7)
    number = len(row_table.rows_by_numpy(rows, WANTED, DRAW).user_n)
    table = RowTable(expected + number, NAMES, narrow=True)
    assert table.add_rows_of(rows, WANTED, expected, DRAW) == number
    assert table.add_rows_of(rows, WANTED, number, DRAW) == number
    table.add(WindowRows.missing(expected, NAMES))
    found = table.ordered(np.arange(expected + number))
    assert_same(_head(found, number), row_table.rows_by_numpy(rows, WANTED, DRAW))
    assert (found.user_n[number:] == -1).all() and not found.weight_n[number:].any()


def _head(rows: WindowRows, number: int) -> WindowRows:
    return WindowRows(
        rows.user_n[:number],
        rows.item_n[:number],
        rows.feedback_n[:number],
        rows.weight_n[:number],
        {
            name: Ranges(each.values, each.start[:number], each.stop[:number])
            for name, each in rows.lists.items()
        },
        {},
    )


def test_more_events_than_a_table_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_table, "NARROW", 3)
    with pytest.raises(Mistake, match="shuffle-window-rows"):
        table_of([some_rows(1)], WANTED)
