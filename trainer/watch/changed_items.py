"""`train --windows --export-to DIR`: after each window, the items whose vectors are others now.

    DIR/window-00007.parquet    item (row), raw_id, embedding: items whose vector changed, or that
                                are new, since the files before it

All files in order, a later row in place of an earlier one of its item, are the item index. A file
is there whole or not at all; one that is written again after a failure is the same.

Shapes: I items of this rank's range, n changed ones, D columns of a vector.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset
from trainer.distributed.agreement import gather_objects, together
from trainer.distributed.ranks import Ranks
from trainer.files.filesystems import is_uri
from trainer.files.writing import written
from trainer.retrieval.encode import Encoder, rank_range

NAME = re.compile(r"window-(\d{5,9})\.parquet")


def check_folder(folder: str) -> None:
    """Raise Mistake where what changes cannot be written into a folder."""
    if is_uri(folder):
        raise Mistake(f"--export-to {folder}: name a folder, which a file is renamed in")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise Mistake(f"--export-to {folder} is no folder: name another")


def export_changed(folder: str, encoder: Encoder, dataset: Dataset, number: int) -> int:
    """Write the file of a window; how many items it has. Collective.

    Memory: 4 * I * D bytes for the vectors that are there already.
    """
    ranks, root = encoder.ranks, Path(folder)
    before = together(lambda: _Exported(root, number, dataset.num_items, ranks))  # collective
    rows, vectors = [], []
    for row_n, block_nD in encoder.item_blocks():  # collective
        vector_nD = block_nD.float().cpu().numpy()  # device-to-host sync
        changed_n = before.differs(row_n, vector_nD)
        rows.append(row_n[changed_n])
        vectors.append(vector_nD[changed_n])
    own = np.concatenate(rows), np.concatenate(vectors)
    parts = gather_objects(own)  # collective
    item_n = np.concatenate([part[0] for part in parts])
    if ranks.is_first:
        vector_nD = np.concatenate([part[1] for part in parts])
    together(lambda: _write(root, number, dataset, item_n, vector_nD) if ranks.is_first else None)
    return len(item_n)


class _Exported:
    """The vectors of a rank's items by the files of earlier windows."""

    def __init__(self, root: Path, number: int, num_items: int, ranks: Ranks) -> None:
        self._first, self._stop = rank_range(num_items, ranks)
        self._vector_ID: np.ndarray | None = None
        self._there_I = np.zeros(self._stop - self._first, dtype=bool)
        for path in sorted(root.glob("window-*.parquet")):
            found = NAME.fullmatch(path.name)
            if found is not None and int(found.group(1)) < number:
                self._add(path)

    def _add(self, path: Path) -> None:
        with open_parquet(str(path)) as file:
            table = file.read(columns=["item", "embedding"])
        column = table.column("embedding").combine_chunks()
        vector_nD = column.flatten().to_numpy().reshape(len(table), -1)
        row_n = table.column("item").to_numpy()
        here_n = (row_n >= self._first) & (row_n < self._stop)
        if self._vector_ID is None:
            shape = (len(self._there_I), vector_nD.shape[1])
            self._vector_ID = np.zeros(shape, dtype=np.float32)
        if vector_nD.shape[1] != self._vector_ID.shape[1]:
            raise Mistake(f"{path} holds vectors of another width: choose another --export-to")
        self._vector_ID[row_n[here_n] - self._first] = vector_nD[here_n]
        self._there_I[row_n[here_n] - self._first] = True

    def differs(self, row_n: np.ndarray, vector_nD: np.ndarray) -> np.ndarray:
        """Which rows, consecutive, have another vector by now, bool; zeros are no vector."""
        known_n: np.ndarray = (vector_nD != 0).any(axis=1)
        if self._vector_ID is None or not len(row_n):
            return known_n
        here = slice(int(row_n[0]) - self._first, int(row_n[-1]) + 1 - self._first)
        if vector_nD.shape[1] != self._vector_ID.shape[1]:
            raise Mistake(
                f"--export-to holds vectors of {self._vector_ID.shape[1]} columns, the model's "
                f"have {vector_nD.shape[1]}: choose another folder"
            )
        same_n = (self._vector_ID[here] == vector_nD).all(axis=1) & self._there_I[here]
        return known_n & ~same_n


def _write(
    root: Path, number: int, dataset: Dataset, item_n: np.ndarray, vector_nD: np.ndarray
) -> None:
    """Rank 0."""
    root.mkdir(parents=True, exist_ok=True)
    with open_parquet(dataset.file("items.parquet")) as file:
        raw = file.read(columns=["raw_id"]).column("raw_id").take(pa.array(item_n))
    flat = pa.array(vector_nD.reshape(-1), type=pa.float32())
    table = pa.table(
        {
            "item": pa.array(item_n, type=pa.int64()),
            "raw_id": raw,
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vector_nD.shape[1]),
        }
    )
    path = root / f"window-{number:05d}.parquet"
    partial = path.with_name(path.name + ".partial")
    try:
        with written(partial) as stream:
            pq.write_table(table, stream, compression="NONE", use_dictionary=False)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
