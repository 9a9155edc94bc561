"""Events of planted data written, a file a part and window, and what dataset.json says of them.

Shapes: U = users of a part, S = splits, K = kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.events.event_files import EventWriter, Layout, part_file
from trainer.data.events.event_reader import feedback_of
from trainer.data.schema import EventWindow
from trainer.prepare.partitions.event_windows import each_window
from trainer.synth.planted_rows import PartRows


@dataclass(frozen=True)
class Written:
    """A file of events."""

    window: int
    file: str
    users: int
    count_SK: np.ndarray
    """Events by split and kind."""
    asked_S: np.ndarray
    """Users with a positive in each split."""
    first_time: int
    last_time: int


def write_events(
    folder: Path, number: int, part: PartRows, layout: Layout, windows: int, limit: int
) -> list[Written]:
    """A part's events, a file a window that has some.

    layout: of the first window. limit: longest history that later windows carry.
    """
    events = part.events()
    window_M = np.zeros(len(events.user_E), dtype=np.int64)
    if part.window_M is not None:
        window_M = part.window_M
    disliked_K = feedback_of(layout.kinds) < 0
    written = []
    for window, own in each_window(events, window_M, windows, disliked_K, limit):
        name = part_file(window, number)
        own_layout = layout if window == 0 else layout.carrying()
        with EventWriter(folder / name, own_layout) as writer:
            writer.write(own)
        written.append(
            Written(
                window,
                name,
                writer.users,
                writer.count_SK,
                writer.asked_S,
                writer.first_time,
                writer.last_time,
            )
        )
    return written


def described_windows(written: Sequence[Written], windows: int) -> tuple[EventWindow, ...]:
    """The windows of dataset.json: with times where there are several."""
    found = []
    for window in range(windows):
        own = [each for each in written if each.window == window]
        if own:
            times = (min(each.first_time for each in own), max(each.last_time for each in own))
            found.append(
                EventWindow(
                    tuple(each.file for each in own),
                    sum(each.users for each in own),
                    sum(int(each.count_SK.sum()) for each in own),
                    *(times if windows > 1 else ()),
                )
            )
    return tuple(found)
