"""A dataset's windows as a stream: what each one's own events say, and what was met before it.

A window is known by the number of its folder, which it keeps for life: windows are appended, and
the oldest may leave. One pass over a window says all that is asked of it here, and each rank makes
it for itself.

Shapes: I items, U users, G row groups of a window.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.data.description import AGAIN
from trainer.data.events.event_reader import EventReader
from trainer.data.schema import Dataset, EventWindow

KEPT = 3
"""Windows whose facts are kept: that in training, and those read ahead."""
WINDOW_BYTES_AN_ITEM, WINDOW_BYTES_A_USER = 9 * KEPT + 30, KEPT + 3
"""That a stream holds at most: of `KEPT` windows, of what was met before the run, before a window,
and until its end."""


@dataclass(frozen=True)
class WindowFacts:
    """What a window's own events say."""

    count_I: np.ndarray
    """Positive events of each item: its rows in training, int64."""
    item_I: np.ndarray
    """Items that training looks up, bool."""
    user_U: np.ndarray
    """Users likewise."""
    context: dict[str, np.ndarray]
    """By key, values of categories of the context that occur, bool."""
    asked_G: np.ndarray
    """Users with an event that is looked for, int64."""


@dataclass(frozen=True)
class Before:
    """What was met before a window."""

    count_I: np.ndarray
    """Positive events of each item in windows that the dataset still has, int64."""
    liked_I: np.ndarray
    """Items with one, there or in what a run has met that is in the data no more, bool."""
    item_I: np.ndarray
    """Items that training has looked up, likewise."""
    user_U: np.ndarray

    @staticmethod
    def nothing(dataset: Dataset) -> Before:
        return Before(
            np.zeros(dataset.num_items, dtype=np.int64),
            np.zeros(dataset.num_items, dtype=bool),
            np.zeros(dataset.num_items, dtype=bool),
            np.zeros(dataset.num_users, dtype=bool),
        )

    def and_then(self, facts: WindowFacts) -> Before:
        """After a window."""
        return Before(
            self.count_I + facts.count_I,
            self.liked_I | (facts.count_I > 0),
            self.item_I | facts.item_I,
            self.user_U | facts.user_U,
        )


class EventStream:
    """The windows of a dataset. Any thread may call it."""

    def __init__(
        self,
        dataset: Dataset,
        trains_disliked: bool,
        reads_disliked: bool,
        context: Sequence[str] = (),
        met: Before | None = None,
    ) -> None:
        """Args:
        trains_disliked: disliked rows are trained on too.
        reads_disliked: that, or disliked items are looked up as histories.
        context: keys of categories of the context that are looked up.
        met: by a run before it goes on, whether or not the dataset still has it.
        """
        self.dataset = dataset
        self._reader = EventReader(dataset)
        self._trained: Literal["all", "positive"] = "all" if trains_disliked else "positive"
        self._reads_disliked, self._context = reads_disliked, tuple(context)
        self.numbers = window_numbers(dataset)
        """Of all windows, ascending."""
        self._facts: dict[int, WindowFacts] = {}
        self.met = met or Before.nothing(dataset)
        self._before: tuple[int, Before] | None = None
        self._lock = threading.RLock()

    def window(self, number: int) -> EventWindow:
        """What dataset.json says of a window."""
        return self.dataset.windows[self.numbers.index(number)]

    def groups(self, number: int) -> range:
        """The row groups of a window, among those of all; none where the dataset has it no more."""
        if number not in self.numbers:
            return range(0)
        place = self.numbers.index(number)
        first, stop = np.searchsorted(self._reader.windows_G, (place, place + 1)).tolist()
        return range(first, stop)

    def rows(self, number: int) -> int:
        """Rows of a window that training takes; the footers say so."""
        groups = self.groups(number)
        counted = self._reader.count(SPLITS, self._trained)
        return int(counted[groups.start : groups.stop].sum())

    def facts(self, number: int) -> WindowFacts:
        """Reads the window, unless it was among the last ones asked for."""
        with self._lock:
            if number not in self._facts:
                while len(self._facts) >= KEPT:
                    del self._facts[min(self._facts)]
                self._facts[number] = self._read(number)
            return self._facts[number]

    def before(self, number: int) -> Before:
        """All earlier windows together, and what was met. Asked for one after the other it reads
        none twice."""
        with self._lock:
            at, found = self._before or (-1, self.met)
            if at > number:
                at, found = -1, self.met
            for each in self.numbers:
                if at <= each < number:
                    found = found.and_then(self.facts(each))
            self._before = number, found
            return found

    def _read(self, number: int) -> WindowFacts:
        dataset, groups = self.dataset, self.groups(number)
        none = Before.nothing(dataset)
        facts = WindowFacts(
            none.count_I,
            none.item_I,
            none.user_U,
            {key: np.zeros(dataset.attributes[key].num_values, bool) for key in self._context},
            np.zeros(len(groups), dtype=np.int64),
        )
        for place, group in enumerate(groups):
            rows = self._reader.read(group)
            liked_E = rows.own_E & (rows.feedback_E > 0)
            met_E = rows.own_E if self._reads_disliked else liked_E
            facts.count_I[:] += np.bincount(rows.item_E[liked_E], minlength=dataset.num_items)
            facts.item_I[rows.item_E[met_E]] = True
            facts.user_U[rows.user_R[rows.row_E[met_E]]] = True
            for key, met in facts.context.items():
                met[rows.more[key][met_E]] = True
            asked_E = rows.own_E & (rows.feedback_E == 1)
            facts.asked_G[place] = len(np.unique(rows.row_E[asked_E]))
        return facts


def window_numbers(dataset: Dataset) -> list[int]:
    """Numbers of the windows' folders, in the order of time.

    Raises:
        Mistake: where they are not numbered so.
    """
    found = [re.match(r"events/(\d{1,9})/", window.files[0]) for window in dataset.windows]
    numbers = [int(each.group(1)) for each in found if each is not None]
    if len(numbers) < len(found) or numbers != sorted(set(numbers)):
        raise Mistake(
            f"{dataset.path}/dataset.json: the windows' folders are not numbered in order: {AGAIN}"
        )
    return numbers
