"""Rows as a table of numbers, so that putting a window in its order fetches each row at once.

Rows of a window come in an order that no cache foresees: a table of eight 32-bit numbers a row is
one line of it a row, where eight arrays would be eight. A C kernel fills it from the events in one
pass; without a compiler, and for data without times, numpy does.

Shapes: n = rows, E = events of a group.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from losses.kernels.native import library_of
from trainer.base.mistake import Mistake
from trainer.data.events.event_rows import EventRows
from trainer.data.events.histories import NAMES, Draw, before_events, cut_into_chunks
from trainer.data.events.marks import Marks
from trainer.data.jagged import Ranges

SOURCE = Path(__file__).with_name("training_rows.c")
WIDTH = 8
USER, ITEM, FEEDBACK, WEIGHT = range(4)
BOUNDS = {"history": slice(4, 6), "disliked": slice(6, 8)}
"""Columns of the beginning and the end of each list, among the values of all rows' lists."""
NARROW = 2**31


@dataclass(frozen=True)
class Wanted:
    """Which events are rows, and what they see."""

    splits: tuple[int, ...]
    lists: tuple[str, ...]
    positives_only: bool
    weight_K: np.ndarray
    """Weight of each kind, float32."""
    limit: int
    """Longest list."""
    chunk: int | None
    """Length of the chunks that lists are cut into; None: the last `limit` are seen."""
    context: tuple[str, ...] = ()
    """Keys of the context that are read with each event."""
    marks: Marks | None = None
    """What items of lists that are cut into chunks carry; numpy makes them."""


@dataclass(frozen=True)
class WindowRows:
    """Rows of a window in the order of the epoch; rows lost to a corrupt row group hold -1."""

    user_n: np.ndarray
    """Ids of any integer type, as are the next two."""
    item_n: np.ndarray
    feedback_n: np.ndarray
    weight_n: np.ndarray
    """float32."""
    lists: dict[str, Ranges]
    """"history" and "disliked", where asked for."""
    context: dict[str, np.ndarray]
    """By key, where asked for: a category's row, or a number."""

    @staticmethod
    def missing(rows: int, lists: Sequence[str], context: Sequence[str] = ()) -> WindowRows:
        """Rows without data: padding, or a row group that cannot be read."""
        nobody, none = np.full(rows, -1, dtype=np.int64), np.zeros(rows, dtype=np.int64)
        empty = Ranges(np.empty(0, dtype=np.int32), none, none)
        return WindowRows(
            nobody,
            nobody,
            np.ones(rows, dtype=np.int8),
            np.zeros(rows, dtype=np.float32),
            dict.fromkeys(lists, empty),
            dict.fromkeys(context, none),
        )


class RowTable:
    """Rows of some groups, one after the other."""

    def __init__(self, rows: int, lists: Sequence[str], narrow: bool) -> None:
        """narrow: users, items and places of events are below 2^31."""
        self._rows_n = np.empty((rows, WIDTH), dtype=np.int32 if narrow else np.int64)
        self._lists, self._filled = tuple(lists), 0
        self._values: dict[str, list[np.ndarray]] = {name: [] for name in lists}
        self._context: dict[str, list[np.ndarray]] = {}

    def add(self, part: WindowRows) -> None:
        """Rows of a group, made by numpy."""
        begin, self._filled = self._filled, self._filled + len(part.user_n)
        table_n = self._rows_n[begin : self._filled]
        table_n[:, USER], table_n[:, ITEM] = part.user_n, part.item_n
        table_n[:, FEEDBACK], table_n[:, WEIGHT] = part.feedback_n, part.weight_n.view(np.int32)
        table_n[:, WEIGHT + 1 :] = 0
        for name, (values, start_n, stop_n) in part.lists.items():
            before = self._held(name)
            table_n[:, BOUNDS[name]] = np.stack([start_n, stop_n], axis=1) + before
            self._values[name].append(values)
        self._further(part.context)

    def add_rows_of(self, rows: EventRows, wanted: Wanted, expected: int, draw: Draw) -> int:
        """Rows of a group: how many there are. They are added where that is as expected."""
        room = self._rows_n[self._filled : self._filled + expected]
        made = _by_kernel(rows, wanted, room, [self._held(name) for name in NAMES])
        if made is None:
            part = rows_by_numpy(rows, wanted, draw)
            if len(part.user_n) == expected:
                self.add(part)
            return len(part.user_n)
        count, values, event_n = made
        if count == expected:
            self._filled += count
            for name in self._lists:
                self._values[name].append(values[name])
            self._further({key: rows.more[key][event_n] for key in wanted.context})
        return count

    def first_of_sequences(self, parts: Sequence[int]) -> np.ndarray:
        """Rows that begin a user's chunk, bool [n]. parts: rows of each group."""
        start_n = self._rows_n[:, BOUNDS["history"].start]
        is_first_n = begins_sequence(self._rows_n[:, USER], start_n)
        is_first_n[np.cumsum([0, *parts[:-1]])[np.array(parts) > 0]] = True
        return is_first_n

    def ordered(self, permutation_n: np.ndarray) -> WindowRows:
        """All rows in another order."""
        assert self._filled == len(self._rows_n)
        held = max(map(self._held, self._lists), default=0)
        if held >= NARROW:
            raise Mistake(
                f"a shuffle window's histories hold {held:,} events, at most {NARROW:,} can be: "
                "take a smaller data.shuffle-window-rows"
            )
        table_n = self._rows_n.take(permutation_n, axis=0)
        weight_n = table_n[:, WEIGHT].astype(np.int32, copy=False).view(np.float32)
        return WindowRows(
            table_n[:, USER],
            table_n[:, ITEM],
            table_n[:, FEEDBACK],
            weight_n,
            {
                name: Ranges(np.concatenate(self._values[name]), *table_n[:, BOUNDS[name]].T)
                for name in self._lists
            },
            {
                key: np.concatenate(parts).take(permutation_n)
                for key, parts in self._context.items()
            },
        )

    def _held(self, name: str) -> int:
        """Values of a list so far."""
        return sum(map(len, self._values.get(name, ())))

    def _further(self, context: Mapping[str, np.ndarray]) -> None:
        for key, value_n in context.items():
            self._context.setdefault(key, []).append(value_n)


def begins_sequence(user_n: np.ndarray, start_n: np.ndarray) -> np.ndarray:
    """Rows of another user than the row before, or of another chunk of his; bool [n]."""
    is_first_n = np.ones(len(user_n), dtype=bool)
    is_first_n[1:] = (user_n[1:] != user_n[:-1]) | (start_n[1:] != start_n[:-1])
    return is_first_n


def rows_by_numpy(rows: EventRows, wanted: Wanted, draw: Draw) -> WindowRows:
    """The rows of a group in the order of its events, and what each sees."""
    pool_E = np.isin(rows.split_E, wanted.splits)
    wanted_E = rows.feedback_E > 0 if wanted.positives_only else rows.feedback_E != 0
    event_n = np.flatnonzero(pool_E & wanted_E & rows.own_E)
    weight_n = wanted.weight_K[rows.kind_E[event_n]]
    if "weight" in rows.more:
        weight_n = weight_n * rows.more["weight"][event_n]
    lists = {}
    for name in wanted.lists:
        if wanted.chunk is None:
            lists[name] = before_events(rows, event_n, name, pool_E, wanted.limit, draw)
        else:
            whole = before_events(rows, event_n, name, pool_E, len(rows.item_E), draw, wanted.marks)
            lists[name] = cut_into_chunks(whole, wanted.chunk)
    return WindowRows(
        rows.user_R[rows.row_E[event_n]],
        rows.item_E[event_n],
        np.sign(rows.feedback_E[event_n]),
        weight_n,
        lists,
        {key: rows.more[key][event_n] for key in wanted.context},
    )


def _by_kernel(
    rows: EventRows, wanted: Wanted, out_n: np.ndarray, before: list[int]
) -> tuple[int, dict[str, np.ndarray], np.ndarray] | None:
    """(rows that there are, values of each list, the event of each row); None: not possible."""
    kernel, events = _kernel(), len(rows.item_E)
    weight_E = rows.more.get("weight")
    given: tuple[tuple[np.ndarray | None, type[np.generic]], ...] = (
        (rows.user_R, np.int64),
        (rows.offsets_R, np.int64),
        (rows.item_E, np.int32),
        (rows.time_E, np.int64),
        (rows.kind_E, np.int8),
        (rows.feedback_E, np.int8),
        (rows.split_E, np.int8),
        (rows.carried_E, np.bool_),
        (weight_E, np.float32),
    )
    as_expected = all(
        each is None or (each.dtype == of and each.flags.c_contiguous) for each, of in given
    )
    plain = rows.time_E is not None and wanted.marks is None
    if kernel is None or not plain or out_n.dtype != np.int32 or not as_expected:
        return None
    pool_S = np.isin(np.arange(np.iinfo(np.int8).max), wanted.splits)
    # A place more: what is written there is not kept.
    values = [np.empty(events + 1, dtype=np.int32) for _ in NAMES]
    event_n = np.empty(len(out_n), dtype=np.int32)
    places = np.array(before, dtype=np.int64)
    written: list[np.ndarray] = [places, *values, event_n, out_n]
    numbers = (
        wanted.positives_only,
        wanted.limit if wanted.chunk is None else wanted.chunk,
        wanted.chunk or 0,
        len(out_n),
    )
    count = kernel(
        ctypes.c_int64(len(rows.user_R)),
        *(_pointer(each) for each, _ in given),
        *map(_pointer, (wanted.weight_K, pool_S)),
        *map(ctypes.c_int64, numbers),
        *(_pointer(each) for each in written),
    )
    held = dict(zip(NAMES, (v[:n] for v, n in zip(values, places, strict=True)), strict=True))
    return count, held, event_n[:count]


def _pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


@lru_cache
def _kernel() -> ctypes._NamedFuncPointer | None:
    library, _ = library_of(SOURCE)
    if library is None:
        return None
    library.training_rows.restype = ctypes.c_int64
    return library.training_rows
