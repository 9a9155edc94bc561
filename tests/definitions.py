"""What a dataset's events say of rows and queries, by definition: plain Python, one by one.

The events are read without our reader; loader and queries are compared with what stands here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.parquet as pq

from trainer.base.split_names import SPLITS
from trainer.data.schema import FEEDBACK, Dataset


@dataclass(frozen=True)
class Event:
    """One event; `place` counts those of its user."""

    user: int
    item: int
    feedback: int
    split: str
    time: int | None
    place: int
    seen: bool = False
    """Left out of later rankings without a feedback."""


def events_of(dataset: Dataset) -> list[Event]:
    """All events by user, those of a user from window to window in the order of the files.

    What a window carries of earlier ones is left out; what these held out is train by now.
    """
    found = []
    for window in dataset.windows:
        for path in map(dataset.file, window.files):
            for row in pq.read_table(path).to_pylist():
                if not row.get("carried", 0):
                    newest = window is dataset.windows[-1]
                    row["split"] = SPLITS[row.get("split", 0) if newest else 0]
                    found.append(row)
    events: list[Event] = []
    for row in sorted(found, key=lambda row: row["user"]):
        before = events[-1].place + 1 if events and events[-1].user == row["user"] else 0
        role = dataset.kinds[row.get("kind", 0)].role
        what = row["user"], row["item"], FEEDBACK[role], row["split"], row.get("time")
        events.append(Event(*what, before, role == "seen"))
    return events


def by_user(events: Iterable[Event]) -> dict[int, list[Event]]:
    """Each user's events in order."""
    found: dict[int, list[Event]] = {}
    for event in events:
        found.setdefault(event.user, []).append(event)
    return found


def holds(name: str, event: Event) -> bool:
    """Whether a list may hold an event."""
    return event.feedback < 0 if name == "disliked" else event.feedback >= 0


def is_left_out(event: Event) -> bool:
    """Whether later rankings of the user leave the item out."""
    return event.feedback in (1, -1) or event.seen


def others(event: Event, own: Iterable[Event], splits: Iterable[str], name: str) -> list[Event]:
    """What a row's list is taken of: its user's other events, earlier ones where there are times.

    own: the user's events in order.
    """
    return [
        each
        for each in own
        if each.split in splits
        and holds(name, each)
        and each is not event
        and (each.time is None or event.time is None or each.time < event.time)
    ]


def last(events: list[Event], limit: int) -> tuple[int, ...]:
    """Items of the last `limit` events."""
    return tuple(each.item for each in events[max(0, len(events) - limit) :])


@dataclass(frozen=True)
class Query:
    """A query by definition."""

    user: int
    targets: tuple[int, ...]
    disliked_targets: tuple[int, ...]
    seen: tuple[int, ...]
    history: tuple[int, ...]
    disliked: tuple[int, ...]


def queries_of(dataset: Dataset, split: str) -> list[Query]:
    """Users who liked something in the split, with what is known of them before it."""
    found = []
    limit, number = dataset.history_length, SPLITS.index(split)
    for user, own in sorted(by_user(events_of(dataset)).items()):
        inside = [each for each in own if each.split == split]
        if not any(each.feedback == 1 for each in inside):
            continue
        known = [each for each in own if SPLITS.index(each.split) < number]
        earlier = known
        if dataset.held_out_by_time:
            start = min(each.time for each in inside if each.time is not None)
            earlier = [each for each in known if each.time is not None and each.time < start]
        found.append(
            Query(
                user,
                tuple(each.item for each in inside if each.feedback == 1),
                tuple(each.item for each in inside if each.feedback < 0),
                tuple(sorted({each.item for each in known if is_left_out(each)})),
                last([each for each in earlier if holds("history", each)], limit),
                last([each for each in earlier if holds("disliked", each)], limit),
            )
        )
    return found
