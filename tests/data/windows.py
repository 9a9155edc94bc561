"""Logs of several days, prepared, and what must come of them by plain definition."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.events.event_reader import EventReader
from trainer.data.schema import Dataset
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import prepare
from trainer.prepare.prepare_arguments import PrepareArguments

DAY = 86_400
START = 1_600_000_000 // DAY * DAY
Log = list[tuple[int, int, int, int]]
"""(user, item, rating, time)"""


def make_log(seed: int, rows: int = 600, days: int = 4) -> Log:
    """Users and items that come and go, ratings of all kinds, ties and repeats."""
    random = np.random.default_rng(seed)
    log = []
    for _ in range(rows):
        day = int(random.integers(days))
        user = int(random.integers(day * 3, 12 + day * 5))
        item = int(random.integers(day * 2, 25 + day * 10))
        time = START + day * DAY + int(random.integers(40)) * 1000
        log.append((user, item, int(random.integers(1, 6)), time))
    return log


def write(log: Iterable[tuple[int, ...]], path: Path) -> Path:
    """The log as a source."""
    user, item, rating, time = (pa.array(column) for column in zip(*log, strict=True))
    pq.write_table(pa.table({"user": user, "item": item, "rating": rating, "time": time}), path)
    return path


def make(source: Path, out: Path, **arguments: Any) -> Dataset:
    prepare(PrepareArguments(str(source), str(out), **arguments), SilentProgress())
    return Dataset.load(out, verify="digest")


def day_of(time: int) -> int:
    return (time - START) // DAY


@dataclass(frozen=True)
class Event:
    """An event by its ids in the source."""

    user: int
    item: int
    feedback: int
    time: int
    split: int
    own: bool


def events_of(dataset: Dataset, window: int | None = None) -> list[Event]:
    """All events of a window, or of all, as they lie there; carried ones of one window too."""
    raw = {
        side: pq.read_table(dataset.file(f"{side}s.parquet"))["raw_id"].to_pylist()
        for side in ("user", "item")
    }
    reader = EventReader(dataset)
    found = []
    for group in range(reader.num_groups):
        if window is not None and reader.windows_G[group] != window:
            continue
        rows = reader.read(group)
        assert rows.time_E is not None
        for place, row in enumerate(rows.row_E):
            event = Event(
                raw["user"][rows.user_R[row]],
                raw["item"][rows.item_E[place]],
                int(rows.feedback_E[place]),
                int(rows.time_E[place]),
                int(rows.split_E[place]),
                bool(rows.own_E[place]),
            )
            if window is not None or event.own:
                found.append(event)
    return found


def kept_of(log: Log) -> dict[int, list[tuple[int, int, int, int]]]:
    """By plain definition: (user, item, feedback, time) by day. The first day that counts stays."""
    days: dict[int, dict[tuple[int, int], tuple[int, int]]] = defaultdict(dict)
    seen: set[tuple[int, int]] = set()
    for day in sorted({day_of(time) for *_, time in log}):
        place = -1
        latest: dict[tuple[int, int], tuple[int, int, int]] = {}
        for user, item, rating, time in log:
            place += 1
            if day_of(time) != day or (user, item) in seen:
                continue
            if (user, item) not in latest or (time, place) > latest[user, item][:2]:
                latest[user, item] = (time, place, rating)
        seen |= {pair for pair, (*_, rating) in latest.items() if rating != 3}
        for pair, (time, _, rating) in latest.items():
            days[day][pair] = (time, rating)
    result = {}
    for day, pairs in days.items():
        result[day] = [
            (*pair, 1 if rating >= 4 else -1, time)
            for pair, (time, rating) in pairs.items()
            if rating != 3
        ]
    return result


def check_counts(dataset: Dataset, events: list[Event]) -> None:
    """All counts of dataset.json and of the tables are those of the events that are there."""
    for number, name in enumerate(("train", "validation", "test")):
        own = [each for each in events if each.split == number]
        split = dataset.splits[name]
        assert (split.rows, split.positives) == (len(own), sum(e.feedback > 0 for e in own))
    for side in ("item", "user"):
        for row in pq.read_table(dataset.file(f"{side}s.parquet")).to_pylist():
            own = [e for e in events if getattr(e, side) == row["raw_id"] and e.feedback > 0]
            for name, last in (("count", 0), ("count_with_validation", 1), ("count_of_all", 2)):
                assert row[name] == sum(each.split <= last for each in own), (side, name, row)
