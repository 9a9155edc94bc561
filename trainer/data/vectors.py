"""Vectors of users or items: flat files that are mapped into memory, so that ranks share them.

    vectors/item.text-00000.f16     rows 0.. of the catalog, one vector after the other, no header

Nothing of the catalog's size is read or copied: a look-up touches the pages of its rows. A vector
of zeros says that the row has none.

Shapes: n = rows asked for, W = width.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise

import numpy as np

from trainer.base.mistake import Mistake
from trainer.data.description import AGAIN
from trainer.data.feature_types import Attribute, VectorFile
from trainer.data.schema import Dataset
from trainer.files.filesystems import filesystem_of, is_uri, local_path, reached

TYPES = {"f16": np.float16, "f32": np.float32}
"""By the end of a file's name, the narrowest first."""


class Vectors:
    """An attribute's vectors, looked up by row."""

    def __init__(self, dataset: Dataset, attribute: Attribute) -> None:
        self.width = attribute.width
        self.dtype = np.dtype(
            np.float32
            if any(type_of(each.file) == np.float32 for each in attribute.vectors)
            else np.float16
        )
        """float16, or float32 where a file has it."""
        self._maps = [_mapped(dataset, each, attribute.width) for each in attribute.vectors]
        self._starts = [0, *np.cumsum([each.rows for each in attribute.vectors]).tolist()]

    def take(self, id_n: np.ndarray) -> np.ndarray:
        """The vectors of rows, [n, W]; zeros for -1."""
        taken = np.zeros((len(id_n), self.width), dtype=self.dtype)
        for (start, stop), vectors in zip(pairwise(self._starts), self._maps, strict=True):
            here_n = (id_n >= start) & (id_n < stop)
            if here_n.any():
                taken[here_n] = vectors[id_n[here_n] - start]
        return taken


def type_of(name: str) -> np.dtype:
    """The type of a file's numbers, by its name."""
    return np.dtype(TYPES[name.rsplit(".", 1)[-1]])


def bytes_of(file: VectorFile, width: int) -> int:
    """Bytes that a file of vectors has."""
    return file.rows * width * type_of(file.file).itemsize


def _mapped(dataset: Dataset, file: VectorFile, width: int) -> np.ndarray:
    """A file's vectors [rows, W]; of a store they are copied to this machine's disk first."""
    path, expected = dataset.file(file.file), bytes_of(file, width)
    if not file.rows:
        return np.empty((0, width), dtype=type_of(file.file))
    with reached(path):
        if not is_uri(path):
            mapped = np.memmap(local_path(path), dtype=type_of(file.file), mode="r")
        else:
            with tempfile.TemporaryFile() as copy:
                filesystem, name = filesystem_of(path)
                with filesystem.open(name, "rb") as stream:
                    while block := stream.read(16 << 20):
                        copy.write(block)
                copy.flush()
                mapped = np.memmap(copy, dtype=type_of(file.file), mode="r")
    if mapped.nbytes != expected:
        raise Mistake(f"{path} has {mapped.nbytes} bytes, dataset.json says {expected}: {AGAIN}")
    return mapped.reshape(file.rows, width)
