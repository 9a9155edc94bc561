"""A partition's events written: a file a window that has some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from trainer.data.events.event_files import Events, EventWriter, Layout, more_columns, part_file
from trainer.data.events.event_reader import feedback_of
from trainer.data.events.event_rows import EventRows
from trainer.data.events.histories import count_cold
from trainer.prepare.partitions.event_windows import each_window
from trainer.prepare.partitions.kept_rows import KeptRows
from trainer.prepare.partitions.partition_plan import PartitionPlan

EVENTS_AT_ONCE = 1 << 18


def write_events(plan: PartitionPlan, part: int, kept: KeptRows) -> tuple[np.ndarray, ...]:
    """Write the partition's events, a file a window that has some; its counts from `users_W` on."""
    writers = _Writers(plan, part)
    feedback_K = feedback_of(plan.kinds)
    cold_S = np.zeros(3, dtype=np.int64)
    with writers:
        for block in _whole_users(kept.events.user_E):
            events, window_E = kept.events.take(block), kept.window_E[block]
            each = each_window(events, window_E, plan.windows, feedback_K < 0, plan.history_length)
            for window, own in each:
                writers.of(window).write(own)
                if window == plan.windows - 1:
                    rows = rows_of(own, feedback_K)
                    for split in (1, 2):
                        cold_S[split] += count_cold(
                            rows, split, plan.rule.follows_time, plan.history_length
                        )
    return *writers.counts(), cold_S


def _whole_users(user_E: np.ndarray) -> Iterator[slice]:
    """Blocks of about EVENTS_AT_ONCE events that end with a user's last."""
    start = 0
    while start < len(user_E):
        last = user_E[min(start + EVENTS_AT_ONCE, len(user_E)) - 1]
        stop = int(np.searchsorted(user_E, last, side="right"))
        yield slice(start, stop)
        start = stop


class _Writers(ExitStack):
    """A file a window, opened with its first events."""

    def __init__(self, plan: PartitionPlan, part: int) -> None:
        super().__init__()
        self._plan, self._part = plan, part
        self._open: dict[int, EventWriter] = {}

    def of(self, window: int) -> EventWriter:
        """The writer of a window's events."""
        if window not in self._open:
            plan, number = self._plan, self._plan.first_window + window
            layout = Layout(
                plan.num_users,
                plan.num_items,
                plan.kinds,
                plan.has_timestamps,
                with_split=True,
                with_carried=number > 0,
                more=more_columns(plan.has_weights, plan.context),
            )
            writer = EventWriter(Path(plan.out) / part_file(number, self._part), layout)
            self._open[window] = self.enter_context(writer)
        return self._open[window]

    def counts(self) -> tuple[np.ndarray, ...]:
        """Users, events, first and last moments by window; queries of the newest."""
        windows = range(self._plan.windows)
        none = np.zeros((3, len(self._plan.kinds)), dtype=np.int64)
        bounds = np.iinfo(np.int64)
        opened = self._open
        newest = opened.get(windows[-1])
        return (
            np.array([opened[w].users if w in opened else 0 for w in windows]),
            np.stack([opened[w].count_SK if w in opened else none for w in windows]),
            np.array([opened[w].first_time if w in opened else bounds.max for w in windows]),
            np.array([opened[w].last_time if w in opened else bounds.min for w in windows]),
            np.zeros(3, dtype=np.int64) if newest is None else newest.asked_S,
        )


def rows_of(events: Events, feedback_K: np.ndarray) -> EventRows:
    """The same as they are read again."""
    start_R = np.flatnonzero(np.diff(events.user_E, prepend=-1))
    return EventRows(
        events.user_E[start_R],
        np.append(start_R, len(events.user_E)),
        events.item_E,
        events.kind_E,
        feedback_K[events.kind_E],
        events.split_E,
        events.time_E,
    )
