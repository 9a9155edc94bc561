"""Who interacted with what in train, as bags of neighbours: LightGCN's first hop, in the loader.

Keys: "user_items" (query: the user's items) and "item_users" (candidate: the item's users), each
neighbour weighted by 1 / sqrt(degree of one * degree of the other). The pairs are read once and
kept as memory-mapped arrays beside the data, shared by all ranks of a machine.

In training a bag holds at most `limit` neighbours, drawn anew each step with weights that keep the
sum's expectation, and never the pair that the row is to predict; elsewhere bags are complete.

Shapes: n = bags asked for, V = values of all bags, P = training pairs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trainer.base.mistake import Mistake
from trainer.data.candidates import hash_counter, hash_key
from trainer.data.events.event_reader import each_event
from trainer.data.jagged import Jagged, take_ranges
from trainer.data.schema import DERIVED, Dataset

Side = Literal["user", "item"]

NEIGHBOUR_KEYS: dict[str, Side] = {"user_items": "user", "item_users": "item"}
"""Feature key -> the side whose bags it holds."""

WeightedBags = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(values int64 [V], lengths int64 [n], weights float32 [V])"""


@dataclass(frozen=True)
class NeighbourRule:
    """Which pairs make the graph, and how many neighbours a training bag holds."""

    splits: tuple[str, ...] = ("train",)
    limit: int | None = None
    """None: all of them, also in training."""
    with_disliked: bool = False
    """Disliked pairs too: who met what."""


@dataclass(frozen=True)
class Draw:
    """The step that neighbours are drawn for: a node draws the same on every rank."""

    seed: int
    epoch: int
    step: int


class Neighbours:
    """The bags of a dataset's users and items under a rule."""

    def __init__(self, dataset: Dataset, rule: NeighbourRule) -> None:
        folder = store_neighbours(dataset, rule.splits, rule.with_disliked)
        self._limit = rule.limit
        self._bags: dict[str, Jagged] = {}
        self._degree: dict[str, np.ndarray] = {}
        for side in ("user", "item"):
            offsets = np.load(folder / f"{side}-offsets.npy", mmap_mode="r")
            values = np.load(folder / f"{side}-values.npy", mmap_mode="r")
            self._bags[side] = Jagged(values, offsets)
            self._degree[side] = np.diff(offsets)

    def bags(
        self,
        side: Side,
        id_n: np.ndarray,
        partner_n: np.ndarray | None = None,
        draw: Draw | None = None,
    ) -> WeightedBags:
        """Neighbours of users or items; id -1: an empty bag.

        Args:
            partner_n: a neighbour left out of each bag, for the pair that is predicted; -1: none.
            draw: draws at most `limit` neighbours a bag for that step; None: all of them.
        """
        bags, real_n = self._bags[side], id_n >= 0
        row_n = np.maximum(id_n, 0)
        start_n = np.asarray(bags.offsets[row_n])
        degree_n = np.where(real_n, self._degree[side][row_n], 0)
        if draw is None or self._limit is None:
            taken = take_ranges(bags.values, start_n, start_n + degree_n)
            values_V, lengths_n = taken.values.astype(np.int64), degree_n
        else:
            values_V, lengths_n = self._sample(side, row_n, start_n, degree_n, draw)
        row_V = np.repeat(np.arange(len(id_n)), lengths_n)
        other_degree_V = self._degree["item" if side == "user" else "user"][values_V]
        scale_n = np.sqrt(degree_n) / np.maximum(lengths_n, 1)
        weights_V = (scale_n[row_V] / np.sqrt(np.maximum(other_degree_V, 1))).astype(np.float32)
        if partner_n is not None:
            kept_V = values_V != partner_n[row_V]
            values_V, weights_V, row_V = values_V[kept_V], weights_V[kept_V], row_V[kept_V]
            lengths_n = np.bincount(row_V, minlength=len(id_n))
        return values_V, lengths_n.astype(np.int64), weights_V

    def degree(self, side: Side) -> np.ndarray:
        """Neighbours of each user or item."""
        return self._degree[side]

    def _sample(
        self, side: Side, row_n: np.ndarray, start_n: np.ndarray, degree_n: np.ndarray, draw: Draw
    ) -> tuple[np.ndarray, np.ndarray]:
        """(values [V], lengths [n]): small bags whole; of large ones `limit`, with replacement."""
        assert self._limit is not None
        lengths_n = np.minimum(degree_n, self._limit)
        first_n = np.cumsum(lengths_n) - lengths_n
        place_V = np.arange(lengths_n.sum()) - np.repeat(first_n, lengths_n)
        large_V = np.repeat(degree_n > self._limit, lengths_n)
        key = hash_key(draw.seed, draw.epoch, draw.step, 0 if side == "user" else 1)
        node_V = np.repeat(row_n, lengths_n)[large_V]
        random = hash_counter(key, node_V * self._limit + place_V[large_V])
        drawn = random % np.repeat(degree_n, lengths_n)[large_V].astype(np.uint64)
        place_V[large_V] = drawn.astype(np.int64)
        index_V = np.repeat(start_n, lengths_n) + place_V
        return self._bags[side].values[index_V].astype(np.int64), lengths_n


def store_neighbours(dataset: Dataset, splits: Sequence[str], with_disliked: bool = False) -> Path:
    """Folder of the four arrays, which are made where they are not there, whole or not at all.

    To be called on one rank of a machine before the others: all pairs are sorted in memory.
    """
    kind = "met" if with_disliked else "neighbours"
    name = f"{kind}-{'-'.join(splits)}-{dataset.digest[:12]}"
    home = Path(dataset.path) / DERIVED
    if not os.access(dataset.path, os.W_OK):  # read-only or remote data
        home = _own_folder(Path(tempfile.gettempdir()) / f"tandem-{os.getuid()}")
    folder = home / name
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=home))
    user_P, item_P = _read_pairs(dataset, splits, with_disliked)
    _write_side(partial, "user", user_P, item_P, dataset.num_users)
    _write_side(partial, "item", item_P, user_P, dataset.num_items)
    try:
        partial.rename(folder)
    except OSError:  # another rank was first; its arrays are the same
        shutil.rmtree(partial)
    return folder


def _own_folder(path: Path) -> Path:
    """A folder that nobody else can write to; raises where somebody else made it before."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Mistake(
            f"{path} is not a folder of this user's, and the training graph of data that cannot "
            "be written to is kept there: name another folder for temporary files in TMPDIR"
        )
    return path


def _read_pairs(
    dataset: Dataset, splits: Sequence[str], with_disliked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Positive (user, item) pairs, or all of them, int64 [P] each."""
    users, items = [], []
    for user_E, item_E, feedback_E in each_event(dataset, splits):
        chosen_E = feedback_E != 0 if with_disliked else feedback_E > 0
        users.append(user_E[chosen_E])
        items.append(item_E[chosen_E])
    return np.concatenate(users), np.concatenate(items)


def _write_side(
    folder: Path, side: Side, own_P: np.ndarray, other_P: np.ndarray, rows: int
) -> None:
    order_P = np.lexsort((other_P, own_P))
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(own_P, minlength=rows), out=offsets[1:])
    small = other_P.max(initial=0) < 2**31
    np.save(folder / f"{side}-offsets.npy", offsets)
    np.save(folder / f"{side}-values.npy", other_P[order_P].astype(np.int32 if small else np.int64))
