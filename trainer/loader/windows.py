"""Windows of rows: row groups of events read, their histories found, put in the order of the epoch.

A row is an event that is trained on. Its histories stay ranges of the window's events until a batch
needs them, so that a window is as large as its events, whatever histories are.

Shapes: n = rows of a window, G = row groups of all files.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.data.events.event_reader import DamagedGroup, EventReader
from trainer.data.events.event_rows import EventRows
from trainer.data.events.histories import Draw, before_events, cut_into_chunks
from trainer.data.jagged import Ranges, offsets_of
from trainer.data.schema import Dataset
from trainer.loader.order import EpochOrder

NARROW = 2**31


@dataclass(frozen=True)
class WindowRows:
    """Rows of a window in the order of the epoch; rows lost to a corrupt row group hold -1."""

    user_n: np.ndarray
    item_n: np.ndarray
    feedback_n: np.ndarray
    weight_n: np.ndarray
    """float32."""
    lists: dict[str, Ranges]
    """"history" and "disliked", where asked for."""
    context: dict[str, np.ndarray]
    """By key, where asked for: a category's row, or a number."""

    @staticmethod
    def missing(rows: int, lists: Sequence[str], context: Sequence[str] = ()) -> "WindowRows":
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


class RowGroups:
    """The rows of a dataset's row groups, read one by one from any thread.

    splits: which events are rows, and which ones histories may hold.
    lists: "history" and "disliked", where asked for.
    context: keys of the context that are read with each event.
    history_length: longest list; None: as the dataset says.
    sequence_length: rows of one user stay together, in time order, and `history` begins where the
        row's chunk does (`cut_into_chunks`); None: rows are shuffled one by one.
    """

    def __init__(
        self,
        dataset: Dataset,
        splits: Sequence[str],
        lists: Sequence[str],
        context: Sequence[str] = (),
        *,
        positives_only: bool,
        history_length: int | None,
        skip_corrupt: bool,
        sequence_length: int | None = None,
    ) -> None:
        self._sequence_length = sequence_length
        self._reader = EventReader(dataset)
        self._splits = [SPLITS.index(split) for split in splits]
        self._lists, self._context = tuple(lists), tuple(context)
        self._positives_only = positives_only
        self._weight_K = np.array([kind.weight for kind in dataset.kinds], dtype=np.float32)
        self._limit = dataset.history_length if history_length is None else history_length
        self._skip_corrupt = skip_corrupt
        self._lock = threading.Lock()
        self.skipped_rows = 0
        """Rows lost to corrupt row groups so far, if they are to be skipped."""
        self.rows_G = self._reader.count(splits, "positive" if positives_only else "all")
        """Rows of each group, int64."""

    def window(self, order: EpochOrder, window: int, seed: int) -> WindowRows:
        """Read a window and put its rows into the order of the epoch."""
        draw = Draw(seed, order.epoch)
        parts = [self._part(int(group), draw) for group in order.groups(window)]
        permutation = self._permutation(order, window, parts)
        return WindowRows(
            _permuted([part.user_n for part in parts], permutation),
            _permuted([part.item_n for part in parts], permutation),
            np.concatenate([part.feedback_n for part in parts]).take(permutation),
            np.concatenate([part.weight_n for part in parts]).take(permutation),
            {
                name: _joined([part.lists[name] for part in parts], permutation)
                for name in self._lists
            },
            {
                key: np.concatenate([part.context[key] for part in parts]).take(permutation)
                for key in self._context
            },
        )

    def _permutation(
        self, order: EpochOrder, window: int, parts: Sequence[WindowRows]
    ) -> np.ndarray:
        if self._sequence_length is None:
            return order.permutation(window)
        is_first = [begins_sequence(part.user_n, part.lists["history"].start) for part in parts]
        return order.permutation_of(window, np.concatenate(is_first))

    def _part(self, group: int, draw: Draw) -> WindowRows:
        """The rows of a group as they lie in its file."""
        expected = int(self.rows_G[group])
        if not expected:
            return WindowRows.missing(0, self._lists, self._context)
        try:
            rows = self._reader.read(group)
        except DamagedGroup as error:
            if not self._skip_corrupt:
                raise Mistake(
                    f"{error.what}: restore the file, or go on without its rows with "
                    "data.skip_corrupt"
                ) from error
            with self._lock:
                self.skipped_rows += expected
            return WindowRows.missing(expected, self._lists, self._context)
        part = self._rows_of(rows, draw)
        if len(part.user_n) != expected:
            raise Mistake(
                f"{self._reader.where(group)} holds {len(part.user_n)} rows, its footer says "
                f"{expected}: prepare the dataset again"
            )
        return part

    def _rows_of(self, rows: EventRows, draw: Draw) -> WindowRows:
        pool_E = np.isin(rows.split_E, self._splits)
        wanted_E = rows.feedback_E > 0 if self._positives_only else rows.feedback_E != 0
        event_n = np.flatnonzero(pool_E & wanted_E & rows.own_E)
        weight_n = self._weight_K[rows.kind_E[event_n]]
        if "weight" in rows.more:
            weight_n = weight_n * rows.more["weight"][event_n]
        return WindowRows(
            rows.user_R[rows.row_E[event_n]],
            rows.item_E[event_n],
            np.sign(rows.feedback_E[event_n]),
            weight_n,
            {name: self._list(rows, event_n, name, pool_E, draw) for name in self._lists},
            {key: rows.more[key][event_n] for key in self._context},
        )

    def _list(
        self, rows: EventRows, event_n: np.ndarray, name: str, pool_E: np.ndarray, draw: Draw
    ) -> Ranges:
        if self._sequence_length is None:
            return before_events(rows, event_n, name, pool_E, self._limit, draw)
        whole = before_events(rows, event_n, name, pool_E, len(rows.item_E), draw)
        return cut_into_chunks(whole, self._sequence_length)


def begins_sequence(user_n: np.ndarray, start_n: np.ndarray) -> np.ndarray:
    """Rows of another user than the row before, or of another chunk of his; bool [n]."""
    is_first_n = np.ones(len(user_n), dtype=bool)
    is_first_n[1:] = (user_n[1:] != user_n[:-1]) | (start_n[1:] != start_n[:-1])
    return is_first_n


def _permuted(ids: Sequence[np.ndarray], permutation: np.ndarray) -> np.ndarray:
    """All ids in another order, int64: as 32 bits where they fit, which the cache holds longer."""
    fits = all(int(each.max(initial=0)) < NARROW for each in ids)
    together = np.concatenate(ids, dtype=np.int32 if fits else np.int64, casting="same_kind")
    return together.take(permutation).astype(np.int64, copy=False)


def _joined(parts: Sequence[Ranges], permutation: np.ndarray) -> Ranges:
    """The ranges of all parts over their values end to end, in another order."""
    shifts = offsets_of(np.array([len(part.values) for part in parts]))
    start, stop = (
        [bounds[side] + shift for bounds, shift in zip(parts, shifts[:-1], strict=True)]
        for side in (1, 2)
    )
    return Ranges(
        np.concatenate([part.values for part in parts]),
        _permuted(start, permutation),
        _permuted(stop, permutation),
    )
