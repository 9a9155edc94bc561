"""Bags of ids by feature key, put together as TorchRec takes them.

Keys are those of `features.py`. Shapes: n = rows, S = stride of a KeyedJaggedTensor, V = values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.base.mistake import Mistake
from trainer.data.jagged import Jagged, Ranges, offsets_of
from trainer.data.packing import Packed
from trainer.data.range_copies import copy_ranges, size_of


@dataclass(frozen=True)
class Features:
    """What one side's tower reads of some rows."""

    bags: KeyedJaggedTensor
    """Bags of ids of the keys, stride n."""
    dense: dict[str, Tensor]
    """Numbers [n, 1] and vectors [n, W] by key."""
    sequences: Packed | None = None
    """A sequence a row, where "history" is read as such: its bags are the distinct items then, and
    the stride may be above n."""

    def to(self, device: torch.device) -> Features:
        """The same on a device."""
        return Features(
            self.bags.to(device),
            {key: each.to(device) for key, each in self.dense.items()},
            self.sequences and self.sequences.moved(lambda tensor: tensor.to(device)),
        )


Bags = tuple[np.ndarray | list[np.ndarray | Ranges], np.ndarray]
"""(values [V] of any integer type, in one or several pieces; lengths int64 [n])"""

LIST_KEYS = ("history", "disliked")


def list_of(key: str) -> str | None:
    """The list that a key reads: "history" for "history" and for "history@3", else None."""
    name = key.partition("@")[0]
    return name if name in LIST_KEYS else None


def list_bags(key: str, lists: Mapping[str, Bags]) -> Bags:
    """The whole list of each row, or one position of it ("history@0": the most recent item)."""
    name, _, place = key.partition("@")
    if not place:
        return lists[name]
    values, lengths_n = lists[name]
    values_V = _end_to_end(_pieces(values))
    return _at_place(int(place), values_V, np.cumsum(lengths_n), lengths_n)


def list_column(key: str, lists: Mapping[str, Ranges]) -> Jagged | Ranges:
    """The same as `list_bags`, of lists as a window holds them."""
    name, _, place = key.partition("@")
    bags = lists[name]
    if not place:
        return bags
    values, lengths_n = _at_place(int(place), bags.values, bags.stop, bags.stop - bags.start)
    return Jagged(values, offsets_of(lengths_n))


def _at_place(
    place: int, values_V: np.ndarray, stop_n: np.ndarray, lengths_n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(values, lengths 0 or 1) of the bags' values `place` before the last."""
    reached_n = lengths_n > place
    return values_V[stop_n[reached_n] - 1 - place], reached_n.astype(np.int64)


def context_bags(value_n: np.ndarray | None, user_n: np.ndarray) -> Bags:
    """Bags of a category of the context; row 0, "missing", where it is not given."""
    if value_n is None:
        value_n = np.zeros(len(user_n), dtype=np.int64)
    return value_n.astype(np.int64), np.ones(len(user_n), dtype=np.int64)


def of_item(key: str) -> str:
    """The item's attribute ("item.genre") that an event says of its item ("event.genre")."""
    return "item." + key.removeprefix("event.")


def of_event(key: str) -> str:
    """The other way."""
    return "event." + key.removeprefix("item.")


def rows_of(key: str) -> str:
    """What a feature's ids are rows of: "user", "item", or the key of an attribute."""
    if "." in key:
        return key
    return "user" if key == "user" else "item"


def looked_up(
    keys: Sequence[str], bags: Sequence[Bags], stride: int, row_of: Mapping[str, np.ndarray]
) -> KeyedJaggedTensor:
    """`keyed_jagged` of ids, as rows of tables; row_of: as `in_tables` has it."""
    together = keyed_jagged(keys, bags, stride)
    return in_tables(together, row_of)[0] if row_of else together


def in_tables(
    features: KeyedJaggedTensor, row_of: Mapping[str, np.ndarray]
) -> tuple[KeyedJaggedTensor, Tensor | None]:
    """Rows of tables in place of ids, and the items of "history" as they were (None: no such key).

    row_of: by "user" and "item", the row of each id, where it is not the id.
    """
    values_V = features.values().numpy()
    bounds = dict(zip(features.keys(), pairwise(features.offset_per_key()), strict=True))
    history = bounds.get("history")
    rows_V = values_V.copy()
    for key, (start, stop) in bounds.items():
        if rows_of(key) in row_of:
            rows_V[start:stop] = row_of[rows_of(key)].take(values_V[start:stop])
    mapped = KeyedJaggedTensor(
        keys=features.keys(),
        values=torch.from_numpy(rows_V),
        lengths=features.lengths(),
        stride=features.stride(),
        length_per_key=features.length_per_key(),
        offset_per_key=features.offset_per_key(),
    )
    return mapped, None if history is None else torch.from_numpy(values_V[slice(*history)])


def side_of(key: str) -> Literal["query", "candidate"]:
    """Which tower a feature key belongs to."""
    if key == "user" or key.startswith(("user.", "context.")) or list_of(key):
        return "query"
    if key == "item" or key.startswith("item."):
        return "candidate"
    raise Mistake(
        f"unknown feature key {key!r}: take user, history, disliked (or one position: history@0), "
        "item, user.<attribute>, item.<attribute> or context.<attribute>"
    )


def keyed_jagged(keys: Sequence[str], bags: Sequence[Bags], stride: int) -> KeyedJaggedTensor:
    """Bags of each key as one KeyedJaggedTensor; bags shorter than the stride end in empty ones.

    Lengths per key are given along, so that TorchRec need not read them back from a device.
    """
    lengths = np.zeros((len(keys), stride), dtype=np.int64)
    pieces = [_pieces(bag[0]) for bag in bags]
    sizes = np.array([sum(map(_size, each)) for each in pieces], dtype=np.int64)
    for row, bag in enumerate(bags):
        lengths[row, : len(bag[1])] = bag[1]
    values_V = _end_to_end([piece for each in pieces for piece in each])
    return jagged_of(keys, values_V, lengths, sizes)


def jagged_of(
    keys: Sequence[str],
    values_V: np.ndarray,
    lengths_KS: np.ndarray,
    size_K: np.ndarray,
) -> KeyedJaggedTensor:
    """Values key after key, lengths [K, S] and values of each key [K], as TorchRec takes them."""
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.from_numpy(values_V),
        lengths=torch.from_numpy(lengths_KS.reshape(-1)),
        stride=lengths_KS.shape[1],
        length_per_key=size_K.tolist(),
        offset_per_key=offsets_of(size_K).tolist(),
    )


def _pieces(values: np.ndarray | list[np.ndarray | Ranges]) -> list[np.ndarray | Ranges]:
    return values if isinstance(values, list) else [values]


def _size(piece: np.ndarray | Ranges) -> int:
    return size_of(piece) if isinstance(piece, Ranges) else len(piece)


def _end_to_end(pieces: list[np.ndarray | Ranges]) -> np.ndarray:
    """All values as int64, in the order of the pieces."""
    values_V = np.empty(sum(map(_size, pieces)), dtype=np.int64)
    begin = 0
    for piece in pieces:
        here = values_V[begin : begin + _size(piece)]
        if isinstance(piece, Ranges):
            copy_ranges(piece, here)
        else:
            here[:] = piece
        begin += len(here)
    return values_V
