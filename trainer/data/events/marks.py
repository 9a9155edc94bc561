"""What an event of a sequence says beside its item: its kind, and how long after the one before it.

It goes with the item in one int64, so that lists of items carry it wherever they are cut, joined
and stored:

    bits 0 .. 39    the item
    bits 40 .. 47   1 + the number of its kind; 0: not said
    bits 48 .. 54   1 + the bits of the time since the event before it in the list, in the units of
                    the data; 0: not known

Shapes: E events, V of them in lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.data.events.event_rows import EventRows

ITEM_BITS, KIND_BITS = 40, 8
ITEM_MASK, KIND_MASK = (1 << ITEM_BITS) - 1, (1 << KIND_BITS) - 1
GAPS = 66
"""Values that a gap's mark can have."""


@dataclass(frozen=True)
class Marks:
    """What is read of each event of a sequence."""

    kinds: bool
    dislikes: bool
    """Disliked items are in the sequence too."""
    gaps: bool
    num_kinds: int
    usual_kind: int
    """Of an item that somebody is said to like."""

    @property
    def keys(self) -> tuple[str, ...]:
        """What programs for serving call them."""
        named = {"history.kind": self.kinds, "history.gap": self.gaps}
        return tuple(key for key, is_read in named.items() if is_read)


def marked_items(rows: EventRows, held_E: np.ndarray, marks: Marks | None) -> np.ndarray:
    """Items of the events of lists [V], with their marks; as they are where none are read."""
    item_V = rows.item_E[held_E]
    if marks is None:
        return item_V
    code_V = item_V.astype(np.int64)
    if marks.kinds:
        code_V |= (rows.kind_E[held_E].astype(np.int64) + 1) << ITEM_BITS
    if marks.gaps and rows.time_E is not None:
        code_V |= _gaps(rows.time_E[held_E], rows.row_E[held_E]) << (ITEM_BITS + KIND_BITS)
    return code_V


def _gaps(time_V: np.ndarray, row_V: np.ndarray) -> np.ndarray:
    gap_V = np.diff(time_V, prepend=time_V[:1]).astype(np.float64)
    bits_V = np.frexp(gap_V)[1].astype(np.int64)
    is_first_V = np.diff(row_V, prepend=-1) != 0
    return np.where(is_first_V, 0, bits_V + 1)


def items_of(code_V: np.ndarray) -> np.ndarray:
    """The items of lists, marked or not."""
    return code_V & ITEM_MASK if code_V.dtype == np.int64 else code_V


def marks_of(code_V: np.ndarray) -> np.ndarray:
    """Kind and gap of each, together; int64."""
    return code_V.astype(np.int64) >> ITEM_BITS


def mark_values(mark_V: np.ndarray, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What programs are given of `marks_of`, by key."""
    values = {"history.kind": mark_V & KIND_MASK, "history.gap": mark_V >> KIND_BITS}
    return {key: values[key] for key in keys}
