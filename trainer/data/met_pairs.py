"""Who interacted with what in the splits that are trained on: pairs, by user and by item.

They are read once and kept as memory-mapped arrays beside the data, shared by all ranks of a
machine.

Shapes: P = pairs.
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
from trainer.data.events.event_reader import each_event
from trainer.data.jagged import Jagged
from trainer.data.schema import DERIVED, Dataset

Side = Literal["user", "item"]


@dataclass(frozen=True)
class PairRule:
    """Which pairs are meant."""

    splits: tuple[str, ...] = ("train",)
    with_disliked: bool = False
    """Disliked pairs too: who met what."""


class MetPairs:
    """A dataset's pairs under a rule: of each user the items, of each item the users."""

    def __init__(self, dataset: Dataset, rule: PairRule) -> None:
        folder = store_pairs(dataset, rule)
        self._lists = {
            side: Jagged(
                np.load(folder / f"{side}-values.npy", mmap_mode="r"),
                np.load(folder / f"{side}-offsets.npy", mmap_mode="r"),
            )
            for side in ("user", "item")
        }

    def of(self, side: Side, first: int, stop: int) -> Jagged:
        """The lists of users or items `first` to `stop`."""
        lists = self._lists[side]
        offsets = np.asarray(lists.offsets[first : stop + 1])
        return Jagged(lists.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def degree(self, side: Side) -> np.ndarray:
        """Pairs of each user or item."""
        return np.diff(self._lists[side].offsets)


def store_pairs(dataset: Dataset, rule: PairRule) -> Path:
    """Folder of the four arrays, which are made where they are not there, whole or not at all.

    To be called on one rank of a machine before the others: all pairs are sorted in memory.
    """
    kind = "met" if rule.with_disliked else "liked"
    name = f"{kind}-{'-'.join(rule.splits)}-{dataset.digest[:12]}"
    home = Path(dataset.path) / DERIVED
    if not os.access(dataset.path, os.W_OK):  # read-only or remote data
        home = _own_folder(Path(tempfile.gettempdir()) / f"tandem-{os.getuid()}")
    folder = home / name
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=home))
    user_P, item_P = _read_pairs(dataset, rule.splits, rule.with_disliked)
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
