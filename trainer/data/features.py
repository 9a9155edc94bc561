"""Attributes and counts of users and items, and the bags of ids that the towers look up.

Keys are "user", "history", "disliked", "user.<attribute>", "context.<attribute>" (query), "item",
"item.<attribute>" (candidate); "history@P" is position P of that list, 0 the most recent.
Attributes that are numbers or vectors are dense: arrays of a row each in place of bags, NaN or
zeros where missing. The store holds one row a user or item in the smallest integer type that fits,
and maps vectors; its lookups cost as much as the ids asked for. Ids of -1 (padding) get empty bags.

Shapes: n = rows asked for, S = stride of a KeyedJaggedTensor.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from trainer.base.mistake import Mistake
from trainer.base.split_names import CountColumn
from trainer.data.feature_bags import (
    Bags,
    Features,
    context_bags,
    list_bags,
    list_of,
    looked_up,
    of_item,
)
from trainer.data.feature_types import Attribute
from trainer.data.jagged import Column, Jagged, from_arrow, spread
from trainer.data.packing import Packed
from trainer.data.parquet import open_parquet
from trainer.data.range_copies import copy_bags
from trainer.data.rare_ids import shared_row_of
from trainer.data.schema import Dataset
from trainer.data.vectors import Vectors

Side = Literal["user", "item"]
ROWS_READ_AT_ONCE = 1 << 20
SMALL_TYPES = (np.uint8, np.int16, np.int32, np.int64)
"""No larger unsigned ones: with int64 they would meet in float64."""


class FeatureStore:
    """Columns of users.parquet and items.parquet that some feature keys need.

    keys: feature keys, query and candidate side mixed; unknown attributes are an error.
    count_column: items' counts over the splits that are trained on.
    known_rows: by "user" and "item", rows of the model's tables, where rare ids share some: who got
        a row after the model was trained has the shared one, as before.
    """

    def __init__(
        self,
        dataset: Dataset,
        keys: Sequence[str],
        count_column: CountColumn = "count",
        known_rows: Mapping[str, int] | None = None,
    ) -> None:
        self.num_users = dataset.num_users
        self.num_items = dataset.num_items
        model_rows = known_rows or {}
        self.row_of = {
            side: read_table_rows(dataset, side, model_rows.get(side))
            for side in dataset.table_rows
        }
        """By side, the row that each id has in its tables, where that is not the id."""
        self._columns: dict[str, np.ndarray | Jagged] = {}
        self._vectors: dict[str, Vectors] = {}
        attributes = dataset.attributes
        for key in keys:
            if "." not in key or (key in attributes and key.startswith("context.")):
                continue
            if key not in attributes:
                known = ", ".join(sorted(attributes)) or "none"
                raise Mistake(
                    f"the dataset has no attribute {key!r}; it has: {known}. "
                    "Leave it out, or prepare the dataset with it."
                )
            if attributes[key].kind == "vector":
                self._vectors[key] = Vectors(dataset, attributes[key])
            elif attributes[key].kind == "number":
                self._columns[key] = read_numbers(dataset, key)
            else:
                self._columns[key] = read_attribute(dataset, key, attributes[key])
        counts = read_counts(dataset, "item", count_column)
        self.item_count_I = counts.astype(np.int64 if counts.itemsize == 8 else np.int32)
        """Positive interactions of each item in the splits trained on, [num_items]."""

    def count(self, item_n: np.ndarray, count_I: np.ndarray | None = None) -> np.ndarray:
        """Train count of each item, or what `count_I` says, [n]; 0 for id -1."""
        counted_I = self.item_count_I if count_I is None else count_I
        if len(counted_I) == 0:
            return np.zeros(len(item_n), dtype=np.int64)
        count_n, missing_n = counted_I.take(item_n), item_n < 0
        if missing_n.any():
            count_n[missing_n] = 0
        return count_n

    def column(self, key: str, id_n: np.ndarray) -> Column:
        """What any key but the lists holds for user or item rows.

        id -1: an empty bag. Values keep the small type that the store holds them in.
        """
        real_n = id_n >= 0
        everywhere = bool(real_n.all())
        ids = id_n if everywhere else id_n[real_n]
        taken: Column = ids
        if "." in key:
            column = self._columns[key]
            taken = copy_bags(column, ids) if isinstance(column, Jagged) else column.take(ids)
        return taken if everywhere else spread(taken, real_n)

    def dense(self, key: str, id_n: np.ndarray) -> np.ndarray:
        """Numbers (float32 [n, 1], NaN where missing) or vectors ([n, W], zeros where missing)."""
        if key in self._vectors:
            return self._vectors[key].take(id_n)
        column = self._columns[key]
        assert isinstance(column, np.ndarray)
        number_n = column.take(id_n) if len(column) else np.empty(len(id_n), dtype=np.float32)
        number_n[id_n < 0] = np.nan
        return number_n[:, None]

    def bags(self, key: str, id_n: np.ndarray) -> Bags:
        """Bags of any key but the lists, for user or item rows; id -1: empty."""
        column = self.column(key, id_n)
        if isinstance(column, Jagged):
            return column.values.astype(np.int64), np.diff(column.offsets)
        return column.astype(np.int64), np.ones(len(column), dtype=np.int64)

    def candidate_features(
        self,
        keys: Sequence[str],
        item_n: np.ndarray,
        dense: Sequence[str] = (),
        id_n: np.ndarray | None = None,
    ) -> Features:
        """Candidate keys, and dense ones, for item rows; stride n.

        id_n: the items that "item" itself looks up, where those are not all of them (-1: none).
        """
        ids = {"item": item_n if id_n is None else id_n}
        bags = [self.bags(key, ids.get(key, item_n)) for key in keys]
        numbers = {key: torch.from_numpy(self.dense(key, item_n)) for key in dense}
        return Features(looked_up(keys, bags, len(item_n), self.row_of), numbers)

    def event_features(
        self, keys: Sequence[str], dense: Sequence[str], item_n: np.ndarray
    ) -> tuple[dict[str, Bags], dict[str, torch.Tensor]]:
        """What sequences say of their items beside the ids, by key: bags, and numbers or vectors.

        keys, dense: those of events ("event.genre"), whose attributes are the items'.
        """
        return (
            {key: self.bags(of_item(key), item_n) for key in keys},
            {key: torch.from_numpy(self.dense(of_item(key), item_n)) for key in dense},
        )

    def query_features(
        self,
        keys: Sequence[str],
        user_n: np.ndarray,
        lists: Mapping[str, Bags],
        dense: Sequence[str] = (),
        context: Mapping[str, np.ndarray] | None = None,
        sequences: Packed | None = None,
        stride: int | None = None,
        events: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> Features:
        """Query keys, and dense ones, for users.

        lists: bags of "history" and "disliked". context: by key, a value a row; keys that are left
        out are missing. sequences: what the key "history" is then. stride: None is n. events: as
        `event_features` has them, of the sequences' items.
        """
        given = context or {}
        bags: list[Bags] = []
        for key in keys:
            if key == "history" and sequences is not None:
                bags.append((sequences.item_D.numpy(), np.ones(len(sequences.item_D))))
            elif list_of(key):
                bags.append(list_bags(key, lists))
            elif key.startswith("context."):
                bags.append(context_bags(given.get(key), user_n))
            else:
                bags.append(self.bags(key, user_n))
        numbers: dict[str, torch.Tensor] = {}
        if sequences is not None:
            said, numbers = self.event_features(*events, sequences.item_D.numpy())
            keys, bags = (*keys, *said), [*bags, *said.values()]
        for key in dense:
            if not key.startswith("context."):
                numbers[key] = torch.from_numpy(self.dense(key, user_n))
                continue
            number_n = given.get(key, np.full(len(user_n), np.nan))
            numbers[key] = torch.from_numpy(number_n.astype(np.float32)[:, None])
        together = looked_up(keys, bags, stride or len(user_n), self.row_of)
        return Features(together, numbers, sequences)


def read_counts(dataset: Dataset, side: Side, column: CountColumn) -> np.ndarray:
    """Positive interactions of each user or item, in the smallest type that holds them."""
    path = dataset.file(f"{side}s.parquet")
    counts = _read_integers(path, column, None)
    _check_rows(path, len(counts), dataset.num_users if side == "user" else dataset.num_items)
    return counts


def read_table_rows(dataset: Dataset, side: str, known_rows: int | None = None) -> np.ndarray:
    """The row of each user or item in its tables, where rare ones share some.

    known_rows: of tables that have fewer; whose row is beyond them has the one it would share.
    """
    assert side in ("user", "item")
    path, rows = dataset.file(f"{side}s.parquet"), dataset.rows_of_table(side)
    found = _read_integers(path, "table_row", rows)
    _check_rows(path, len(found), dataset.num_users if side == "user" else dataset.num_items)
    if known_rows is not None:
        later = np.flatnonzero(found >= known_rows)
        found[later] = shared_row_of(later, dataset.table_rows[side].shared)
    return found


def read_attribute(dataset: Dataset, key: str, attribute: Attribute) -> np.ndarray | Jagged:
    side = key.split(".", 1)[0]
    path = dataset.file(f"{side}s.parquet")
    rows = dataset.num_users if side == "user" else dataset.num_items
    if attribute.kind == "single":
        column = _read_integers(path, attribute.name, attribute.num_values)
        _check_rows(path, len(column), rows)
        return column
    bags = _read_lists(path, attribute.name, attribute.num_values)
    _check_rows(path, len(bags.offsets) - 1, rows)
    return bags


def read_numbers(dataset: Dataset, key: str) -> np.ndarray:
    """An attribute that is a number: float32, NaN where missing."""
    side, _, name = key.partition(".")
    path = dataset.file(f"{side}s.parquet")
    with open_parquet(path) as file:
        column = file.read(columns=[name]).column(0)
    numbers: np.ndarray = column.to_numpy(zero_copy_only=False).astype(np.float32)
    _check_rows(path, len(numbers), dataset.num_users if side == "user" else dataset.num_items)
    return np.where(np.isfinite(numbers), numbers, np.float32(np.nan))


def _read_integers(path: str, name: str, limit: int | None) -> np.ndarray:
    """One integer column in the smallest type that holds it; values checked against a limit."""
    parts = []
    with open_parquet(path) as file:
        for part in file.iter_batches(ROWS_READ_AT_ONCE, columns=[name]):
            parts.append(_shrink(part.column(0), limit, f"{path} column {name!r}"))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8)


def _read_lists(path: str, name: str, limit: int) -> Jagged:
    parts = []
    with open_parquet(path) as file:
        for part in file.iter_batches(ROWS_READ_AT_ONCE, columns=[name]):
            bags = from_arrow(pa.chunked_array([part.column(0)]))
            values = _shrink(pa.array(bags.values), limit, f"{path} column {name!r}")
            parts.append(np.diff(bags.offsets))
            parts.append(values)
    lengths = np.concatenate([np.empty(0, dtype=np.int64), *parts[0::2]])
    values = np.concatenate([np.empty(0, dtype=np.uint8), *parts[1::2]])
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    # Half the size, half the cache misses of a look-up.
    return Jagged(values, offsets.astype(np.int32 if len(values) < 2**31 else np.int64))


def _shrink(column: pa.Array, limit: int | None, where: str) -> np.ndarray:
    if column.null_count:
        raise Mistake(
            f"{where} has {column.null_count} nulls, none are allowed: row 0 of an attribute "
            "stands for missing values. Prepare the dataset again."
        )
    values = column.to_numpy(zero_copy_only=False)
    if len(values) == 0:
        return values.astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or (limit is not None and high >= limit):
        wrong = low if low < 0 else high
        bound = f"0..{limit - 1}" if limit is not None else "0 and above"
        raise Mistake(
            f"{where} holds {wrong}, outside {bound} of dataset.json: prepare the dataset again"
        )
    return values.astype(next(kind for kind in SMALL_TYPES if high <= np.iinfo(kind).max))


def _check_rows(path: str, rows: int, expected: int) -> None:
    if rows != expected:
        raise Mistake(
            f"{path} has {rows} rows, dataset.json says {expected}: prepare the dataset again"
        )
