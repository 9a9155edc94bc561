"""Mined negatives: for each user, items that an earlier model ranks high and the user did not meet.

    FILE.parquet    user (row, ascending), items (rows, the highest score first), scores;
                    the dataset's digest in its metadata

A training row takes some of its user's in each step: which, is a hash of the row and the epoch, so
that the row takes the same ones on any number of ranks.

Shapes: U users, B rows, m items of a row.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from trainer.base.mistake import Mistake
from trainer.data.candidates import hash_counter, hash_key
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset

DIGEST = b"tandem.dataset"
NARROW = 2**31


def mined_schema(dataset: Dataset) -> pa.Schema:
    """Of a file of mined negatives."""
    return pa.schema(
        [
            ("user", pa.int64()),
            ("items", pa.list_(pa.int64())),
            ("scores", pa.list_(pa.float32())),
        ],
        metadata={DIGEST: dataset.digest},
    )


def mined_bytes(path: str, dataset: Dataset) -> int:
    """What `MinedItems` of a file holds, by the file's footer.

    Raises:
        Mistake: where it is no Parquet file.
    """
    with open_parquet(path) as file:
        footer = file.metadata
    column = [footer.schema.column(place).path for place in range(footer.num_columns)].index(
        "items.list.element"
    )
    groups = [footer.row_group(group).column(column) for group in range(footer.num_row_groups)]
    an_item = np.dtype(_item_type(dataset)).itemsize
    return 8 * (dataset.num_users + 1) + an_item * sum(group.num_values for group in groups)


def _item_type(dataset: Dataset) -> type[np.signedinteger]:
    return np.int32 if dataset.num_items < NARROW else np.int64


class MinedItems:
    """A file of mined negatives in memory: 8 bytes a user and 4 an item, on every rank."""

    def __init__(self, path: str, dataset: Dataset, each: int, seed: int) -> None:
        """Args:
        each: m, items that a row takes in a step.

        Raises:
            Mistake: where it is no such file, or was mined from other data.
        """
        self.each, self._seed = each, seed
        user_n, self._item_V, length_n = _read(path, dataset)
        length_U = np.zeros(dataset.num_users, dtype=np.int64)
        length_U[user_n] = length_n
        self._start_U = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(length_U)])

    def take(self, user_B: np.ndarray, item_B: np.ndarray, epoch: int) -> np.ndarray:
        """m items of each row one after the other, int64 [B * m]; -1 where the user has too few."""
        real_B = user_B >= 0
        user = np.where(real_B, user_B, 0)
        start_B, length_B = self._start_U[user], np.diff(self._start_U)[user] * real_B
        first_B = hash_counter(hash_key(self._seed, epoch), user_B << 32 ^ item_B)
        first_B = (first_B % np.maximum(length_B, 1).astype(np.uint64)).astype(np.int64)
        place_m = np.arange(self.each)
        place_Bm = (first_B[:, None] + place_m) % np.maximum(length_B, 1)[:, None]
        there_Bm = place_m < length_B[:, None]
        place_Bm = np.where(there_Bm, start_B[:, None] + place_Bm, 0)
        if not len(self._item_V):
            return np.full(place_Bm.size, -1, dtype=np.int64)
        taken_Bm = np.where(there_Bm, self._item_V[place_Bm].astype(np.int64), -1)
        return taken_Bm.reshape(-1)


def _read(path: str, dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users, ascending; items of all; how many of each user)."""
    again = "make it with `tandem mine RUN FILE`"
    try:
        with open_parquet(path) as file:
            table = file.read()
    except (Mistake, OSError, pa.ArrowException) as error:
        raise Mistake(f"negatives.mined {path} cannot be read ({error}): {again}") from error
    digest = (table.schema.metadata or {}).get(DIGEST, b"").decode()
    wanted = mined_schema(dataset)
    if table.schema.remove_metadata() != wanted.remove_metadata():
        raise Mistake(f"negatives.mined {path} is no file of mined negatives: {again}")
    if digest not in dataset.lineage:
        raise Mistake(
            f"negatives.mined {path} was mined from other data (digest {digest[:12]}, here "
            f"{dataset.digest[:12]}): {again} of a run on these data"
        )
    lists = table.column("items").combine_chunks()
    user_n = table.column("user").to_numpy()
    item_V = lists.flatten().to_numpy()
    length_n = lists.value_lengths().fill_null(0).to_numpy().astype(np.int64)
    for name, values, limit in (
        ("user", user_n, dataset.num_users),
        ("item", item_V, dataset.num_items),
    ):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise Mistake(f"negatives.mined {path} has {name} ids outside 0..{limit - 1}: {again}")
    if (np.diff(user_n) <= 0).any():
        raise Mistake(f"negatives.mined {path}: its users do not ascend: {again}")
    return user_n, item_V.astype(_item_type(dataset)), length_n
