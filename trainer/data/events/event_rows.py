"""The events of some users, in memory.

Shapes: R = users, E = their events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from trainer.data.jagged import offsets_of


@dataclass(frozen=True)
class EventRows:
    """Some users, ascending, and their events: those of a user in order."""

    user_R: np.ndarray
    """int64."""
    offsets_R: np.ndarray
    """User i's events are offsets_R[i] .. offsets_R[i + 1] - 1; int64 [R + 1], from 0."""
    item_E: np.ndarray
    """int32 where all items fit, else int64."""
    kind_E: np.ndarray
    """Number of the event's kind in dataset.json, int8."""
    feedback_E: np.ndarray
    """1 positive, 2 a signal, -1 negative, 0 for histories alone; int8."""
    split_E: np.ndarray
    """0 train, 1 validation, 2 test; int8."""
    time_E: np.ndarray | None
    """int64, ascending for a user; None where the data have no times."""
    carried_E: np.ndarray | None = None
    """True for events of earlier windows, which histories alone need; None: none are."""
    more: dict[str, np.ndarray] = field(default_factory=dict)
    """Further columns by name: "weight" (float32), "context.NAME" (ids or float32)."""
    seen_kinds: tuple[int, ...] = ()
    """Kinds without feedback whose items are left out of later rankings."""

    @property
    def own_E(self) -> np.ndarray:
        """Events that are the window's own, bool."""
        if self.carried_E is None:
            return np.ones(len(self.item_E), dtype=bool)
        return ~self.carried_E

    @cached_property
    def row_E(self) -> np.ndarray:
        """The place of each event's user among `user_R`, int64."""
        return np.repeat(np.arange(len(self.user_R)), np.diff(self.offsets_R))

    @cached_property
    def first_of_moment_E(self) -> np.ndarray:
        """The first event of the event's user that has its time; int64. Only of data with times."""
        assert self.time_E is not None
        place_E = np.arange(len(self.item_E))
        begins_E = np.ones(len(place_E), dtype=bool)
        begins_E[1:] = self.time_E[1:] != self.time_E[:-1]
        begins_E[self.offsets_R[:-1][np.diff(self.offsets_R) > 0]] = True
        return np.maximum.accumulate(np.where(begins_E, place_E, 0))

    def of(self, chosen_R: np.ndarray) -> EventRows:
        """The events of some of the users, bool [R]."""
        return self.only(chosen_R[self.row_E], chosen_R)

    def only(self, chosen_E: np.ndarray, chosen_R: np.ndarray | None = None) -> EventRows:
        """Some of the events, bool [E], of users that keep their places or of those chosen."""
        lengths_R = np.bincount(self.row_E[chosen_E], minlength=len(self.user_R))
        kept_R = slice(None) if chosen_R is None else chosen_R
        return EventRows(
            self.user_R[kept_R],
            offsets_of(lengths_R[kept_R]),
            self.item_E[chosen_E],
            self.kind_E[chosen_E],
            self.feedback_E[chosen_E],
            self.split_E[chosen_E],
            None if self.time_E is None else self.time_E[chosen_E],
            None if self.carried_E is None else self.carried_E[chosen_E],
            {name: values[chosen_E] for name, values in self.more.items()},
            self.seen_kinds,
        )


def joined(parts: Sequence[EventRows]) -> EventRows:
    """The own events of several groups, by user; those of one user by time, then by part."""
    if len(parts) == 1 and parts[0].carried_E is None:
        return parts[0]
    if not parts:
        none, small = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int8)
        return EventRows(none, np.zeros(1, dtype=np.int64), none, small, small, small, none)
    own = [part.own_E for part in parts]

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name)[e] for p, e in zip(parts, own, strict=True)])

    user_E = np.concatenate([p.user_R[p.row_E[e]] for p, e in zip(parts, own, strict=True)])
    time_E = None if parts[0].time_E is None else all_of("time_E")
    order_E = np.lexsort((user_E,) if time_E is None else (time_E, user_E))
    user_E = user_E[order_E]
    start_R = np.flatnonzero(np.diff(user_E, prepend=-1))
    return EventRows(
        user_E[start_R],
        np.append(start_R, len(user_E)),
        all_of("item_E")[order_E],
        all_of("kind_E")[order_E],
        all_of("feedback_E")[order_E],
        all_of("split_E")[order_E],
        None if time_E is None else time_E[order_E],
        more={
            name: np.concatenate([p.more[name][e] for p, e in zip(parts, own, strict=True)])[
                order_E
            ]
            for name in parts[0].more
        },
        seen_kinds=parts[0].seen_kinds,
    )
