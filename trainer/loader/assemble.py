"""Windows joined with what is known of their users and items, and batches put together from them.

Looking features up for a whole window costs a third of doing it batch by batch: fewer Python calls,
and longer stretches in which a reader thread needs no GIL. A batch is then slices, one after the
other:

    key "history"    | window 7, rows 0..512 | window 31, rows 0..512 | ...
    key "item.genre" | window 7, rows 0..512 | window 31, rows 0..512 | ... | extra candidates

Shapes: n = rows of a window, B = rows of a batch, E = extra candidates, S = B + E, V = values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from trainer.data.feature_bags import (
    Bags,
    in_tables,
    keyed_jagged,
    list_column,
    list_of,
    side_of,
)
from trainer.data.features import FeatureStore
from trainer.data.jagged import Column, Jagged, Ranges, spread
from trainer.data.packing import Packed
from trainer.loader.batch import Batch
from trainer.loader.batch_bags import Addresses, Parts, addresses_of, parts_of
from trainer.loader.epoch_plan import Step
from trainer.loader.mined import MinedItems
from trainer.loader.row_table import WindowRows
from trainer.loader.sequence_batches import SequenceReading, with_items_of


@dataclass(frozen=True)
class Window:
    """Rows of a window in the order of the epoch, with their features; -1 in rows without data."""

    user_n: np.ndarray
    item_n: np.ndarray
    feedback_n: np.ndarray
    count_n: np.ndarray
    """Positive train interactions of the row's item."""
    weight_n: np.ndarray
    """Of the rows in the loss, float32; 0 in rows without data."""
    columns: dict[str, Column | Ranges]
    """By feature key."""
    numbers: dict[str, np.ndarray]
    """By dense key of the context; those of users and items are looked up batch by batch."""
    addresses: Addresses | None
    """Of all keys' columns; None where their bags are put together by numpy."""
    histories: Ranges | None
    """Of rows that are read as sequences: from the beginning of the row's chunk to what the row
    sees."""


class Piece(NamedTuple):
    """Rows `start`..`stop` of a window."""

    window: Window
    start: int
    stop: int


class Assembler:
    """Makes windows and batches of some feature keys. Without state: any thread may call it."""

    def __init__(
        self,
        store: FeatureStore,
        query_keys: Sequence[str],
        candidate_keys: Sequence[str],
        dense_keys: Sequence[str] = (),
        weighted: bool = False,
        sequences: SequenceReading | None = None,
        counts: Callable[[int], np.ndarray | None] = lambda epoch: None,
        mined: MinedItems | None = None,
    ) -> None:
        """
        Args:
            weighted: rows have weights, whose sum over all ranks none of them knows.
            sequences: rows are read as sequences, which are the key "history"; None: one by one.
            counts: items' train counts in an epoch, int64 [num_items]; None: the store's.
            mined: of them rows take further candidates.
        """
        self._mined = mined
        self._store, self._counts = store, counts
        self._dense_keys, self._weighted = tuple(dense_keys), weighted
        self._sequences = sequences
        query_keys = [key for key in query_keys if key != "history" or sequences is None]
        self._keys = (*query_keys, *candidate_keys)
        self._num_query_keys = len(query_keys)

    def join(self, rows: WindowRows, epoch: int = 0) -> Window:
        """Look up what the keys say of the rows' users and items."""
        columns: dict[str, Column | Ranges] = {}
        for key in self._keys:
            if list_of(key):
                columns[key] = list_column(key, rows.lists)
            elif key.startswith("context."):
                columns[key] = spread_out(rows.context[key], rows.user_n)
            else:
                ids = rows.user_n if side_of(key) == "query" else rows.item_n
                columns[key] = self._store.column(key, ids)
        count_n = self._store.count(rows.item_n, self._counts(epoch))
        numbers = {key: rows.context[key] for key in self._dense_keys if key in rows.context}
        plain = (rows.user_n, rows.item_n, count_n, rows.feedback_n, rows.weight_n.view(np.int32))
        addresses = addresses_of(columns, self._keys, plain)
        return Window(
            rows.user_n,
            rows.item_n,
            rows.feedback_n,
            count_n,
            rows.weight_n,
            columns,
            numbers,
            addresses,
            None if self._sequences is None else rows.lists["history"],
        )

    def batch(
        self, step: Step, pieces: list[Piece], extra_item_E: np.ndarray, position: dict[str, Any]
    ) -> Batch:
        """The batch of a step whose B rows are `pieces`; its extra candidates come after them, what
        is mined for the rows last."""
        mined = 0 if self._mined is None else self._mined.each
        if self._mined is not None:
            user_B, item_B = (end_to_end(each, np.int64) for each in _columns(pieces)[:2])
            mined_X = self._mined.take(user_B, item_B, step.order.epoch)
            extra_item_E = np.concatenate([extra_item_E, mined_X])
        made = self._at_once(pieces, extra_item_E, step) or self._by_numpy(
            pieces, extra_item_E, step
        )
        user_B, item_S = made.user_B, made.item_S
        packed = None
        if self._sequences is not None:
            packed = self._sequences.packed(user_B, pieces)
        batch = Batch(
            features=made.features,
            user_B=torch.from_numpy(user_B),
            item_S=torch.from_numpy(item_S),
            feedback_B=torch.from_numpy(made.feedback_B),
            dense={
                key: torch.from_numpy(self._dense(key, pieces, user_B, item_S))
                for key in self._dense_keys
            },
            weight_B=torch.from_numpy(made.weight_B),
            count_S=torch.from_numpy(made.count_S),
            global_weight=None if self._weighted else torch.tensor(float(step.global_rows)),
            mined=mined,
            local_rows=made.real_rows,
            plan=None,
            step=step.number,
            position=position,
            sequences=packed,
        )
        if packed is not None:
            batch = self._with_items(batch, packed)
        if not self._store.row_of:
            return batch
        rows, history_V = in_tables(batch.features, self._store.row_of)
        return replace(batch, features=rows, history_V=history_V)

    def _with_items(self, batch: Batch, packed: Packed) -> Batch:
        """The batch with what its sequences' items are looked up by."""
        assert self._sequences is not None
        item_D = packed.item_D.numpy()
        bags, dense = self._store.event_features(
            self._sequences.attributes, self._sequences.dense, item_D
        )
        return with_items_of(batch, packed, self._num_query_keys, bags, dense)

    def _dense(
        self, key: str, pieces: list[Piece], user_B: np.ndarray, item_S: np.ndarray
    ) -> np.ndarray:
        """Numbers or vectors: B rows of a query key, S of a candidate key."""
        if key.startswith("context."):
            number_B = np.concatenate([w.numbers[key][start:stop] for w, start, stop in pieces])
            number_B = np.where(user_B >= 0, number_B, np.nan).astype(np.float32)
            return number_B[:, None]
        return self._store.dense(key, user_B if side_of(key) == "query" else item_S)

    def _at_once(self, pieces: list[Piece], extra_item_E: np.ndarray, step: Step) -> Parts | None:
        """A batch by the kernel; None where it cannot make it."""
        taken = [
            (window.addresses, start, stop - start)
            for window, start, stop in pieces
            if window.addresses is not None
        ]
        if len(taken) < len(pieces):
            return None
        keys, query_keys = self._keys, self._num_query_keys
        if not len(extra_item_E):
            return parts_of(taken, None, keys, query_keys)
        columns: dict[str, Column | Ranges] = dict.fromkeys(keys, extra_item_E)
        columns |= {key: self._store.column(key, extra_item_E) for key in keys[query_keys:]}
        count_E = self._store.count(extra_item_E, self._counts(step.order.epoch))
        addresses = addresses_of(columns, keys, (extra_item_E, extra_item_E, count_E))
        assert addresses is not None
        return parts_of(taken, (addresses, 0, len(extra_item_E)), keys, query_keys)

    def _by_numpy(self, pieces: list[Piece], extra_item_E: np.ndarray, step: Step) -> Parts:
        """The same without a kernel."""
        types: tuple[type[np.generic], ...] = (np.int64, np.int64, np.int64, np.int8, np.float32)
        user_B, item_B, count_B, feedback_B, weight_B = map(end_to_end, _columns(pieces), types)
        item_S = np.concatenate([item_B, extra_item_E])
        count_E = self._store.count(extra_item_E, self._counts(step.order.epoch))
        count_S = np.concatenate([count_B, count_E])
        features = keyed_jagged(self._keys, self._bags(pieces, extra_item_E), len(item_S))
        real = int(np.count_nonzero(user_B >= 0))
        return Parts(user_B, item_S, count_S, feedback_B, weight_B, features, real)

    def _bags(self, pieces: list[Piece], extra_item_E: np.ndarray) -> list[Bags]:
        """The bags of every key: B of a query key, S of a candidate key."""
        bags: list[Bags] = []
        for number, key in enumerate(self._keys):
            parts = [(window.columns[key], start, stop) for window, start, stop in pieces]
            if number >= self._num_query_keys and len(extra_item_E):
                parts.append((self._store.column(key, extra_item_E), 0, len(extra_item_E)))
            bags.append(join_slices(parts))
        return bags


def _columns(pieces: list[Piece]) -> list[list[np.ndarray]]:
    """Of each piece user, item, count, feedback and weight of its rows."""
    columns = [(w.user_n, w.item_n, w.count_n, w.feedback_n, w.weight_n) for w, _, _ in pieces]
    return [
        [each[start:stop] for each, (_, start, stop) in zip(of_all, pieces, strict=True)]
        for of_all in zip(*columns, strict=True)
    ]


def end_to_end(parts: list[np.ndarray], of: type[np.generic]) -> np.ndarray:
    """All values as another type, which holds them."""
    return np.concatenate(parts, dtype=of, casting="unsafe")


def spread_out(value_n: np.ndarray, user_n: np.ndarray) -> Column:
    """A value a row, none in rows without data."""
    real_n = user_n >= 0
    return value_n if real_n.all() else spread(value_n[real_n], real_n)


def join_slices(parts: list[tuple[Column | Ranges, int, int]]) -> Bags:
    """Rows start..stop of each column, one after the other; values of bags stay where they are."""
    lengths = np.ones(sum(stop - start for _, start, stop in parts), dtype=np.int64)
    values: list[np.ndarray | Ranges] = []
    row = 0
    for column, start, stop in parts:
        if isinstance(column, Ranges):
            ranges = Ranges(column.values, column.start[start:stop], column.stop[start:stop])
            values.append(ranges)
            np.subtract(ranges.stop, ranges.start, out=lengths[row : row + stop - start])
        elif isinstance(column, Jagged):
            offsets = column.offsets[start : stop + 1]
            values.append(column.values[offsets.item(0) : offsets.item(-1)])
            here = lengths[row : row + stop - start]
            np.subtract(offsets[1:], offsets[:-1], out=here)
        else:
            values.append(column[start:stop])
        row += stop - start
    return values, lengths
