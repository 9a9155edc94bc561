"""What each epoch trains on: all rows of the data, or those of the window whose turn it is.

Shapes: G row groups, I items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from trainer.data.candidates import CandidateSampler, Distribution
from trainer.data.events.event_stream import EventStream


@dataclass(frozen=True)
class WindowSchedule:
    """Windows trained one after the other, each `passes` epochs long."""

    stream: EventStream
    numbers: tuple[int, ...]
    """Of the windows that a run has begun, and of those to come, in order."""
    passes: int = 1

    @property
    def epochs(self) -> int:
        return len(self.numbers) * self.passes

    def window(self, epoch: int) -> int:
        """Number of the window of an epoch."""
        return self.numbers[epoch // self.passes]


class EpochRows:
    """The rows of each epoch, and how often they have each item.

    rows_G: rows of all row groups that take part, int64.
    count_I: positive rows of each item in all of them.
    schedule: None: every epoch has all rows.
    """

    def __init__(
        self, rows_G: np.ndarray, count_I: np.ndarray, schedule: WindowSchedule | None
    ) -> None:
        self._rows_G, self._count_I, self._schedule = rows_G, count_I, schedule
        self._samplers: dict[int, CandidateSampler] = {}

    def epochs_from(self, first: int) -> Iterator[int]:
        """Epochs from `first` on; without end where there are no windows."""
        if self._schedule is None:
            return count(first)
        return iter(range(first, self._schedule.epochs))

    def groups(self, epoch: int) -> tuple[int, np.ndarray]:
        """(the first row group of an epoch, rows of each from there on)."""
        if self._schedule is None:
            return 0, self._rows_G
        if epoch >= self._schedule.epochs:
            return 0, self._rows_G[:0]
        groups = self._schedule.stream.groups(self._schedule.window(epoch))
        return groups.start, self._rows_G[groups.start : groups.stop]

    def rows(self, epoch: int) -> int:
        """Rows of an epoch, over all ranks; 0 after the last window."""
        return int(self.groups(epoch)[1].sum())

    def order_of(self, epoch: int) -> dict[str, Any]:
        """What the order of an epoch's rows depends on, beside settings."""
        found = {"rows": self.rows(epoch), "row_groups": len(self.groups(epoch)[1])}
        if self._schedule is not None and epoch < self._schedule.epochs:
            found["window"] = self._schedule.window(epoch)
        return found

    def counts(self, epoch: int) -> np.ndarray | None:
        """Positive rows of each item in the epoch, where that is a window; None: in all data, also
        while no window has come."""
        if self._schedule is None or not self._schedule.numbers:
            return None
        number = self._schedule.window(min(epoch, self._schedule.epochs - 1))
        return self._schedule.stream.facts(number).count_I

    def sampler(self, epoch: int, law: Distribution, seed: int) -> CandidateSampler:
        """What an epoch draws further candidates with. By popularity: of its window. Uniformly:
        from all items that were met by then."""
        window = 0 if self._schedule is None else self._schedule.window(epoch)
        if window not in self._samplers:
            self._samplers = {window: CandidateSampler(self._drawn(window, law), law, seed)}
        return self._samplers[window]

    def _drawn(self, window: int, law: Distribution) -> np.ndarray:
        if self._schedule is None:
            return self._count_I
        stream = self._schedule.stream
        count_I = stream.facts(window).count_I
        return count_I if law == "popularity" else (count_I > 0) | stream.before(window).liked_I
