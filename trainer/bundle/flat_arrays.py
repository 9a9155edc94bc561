"""Arrays in `.npy` files: written in pieces, mapped when they are read.

    with GrowingArray(folder / "values.npy", np.int32) as array: array.append(block)
    RangeArray.create(path, (rows, width), np.float32); RangeArray(path).write(first, block)

The header has a fixed size, so that a file whose length is known last is begun at once.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from trainer.base.mistake import Mistake
from trainer.data.jagged import Jagged, offsets_of
from trainer.files.storage import names_file
from trainer.files.writing import written

HEADER_BYTES = 256
MAGIC = b"\x93NUMPY\x01\x00"


def header_of(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The header of a `.npy` file, filled up to HEADER_BYTES."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    room = HEADER_BYTES - len(MAGIC) - 2
    body = text.ljust(room - 1) + "\n"
    assert len(body) == room
    return MAGIC + room.to_bytes(2, "little") + body.encode()


class GrowingArray:
    """An array whose first dimension is known at its end. A context manager."""

    def __init__(self, path: Path, dtype: Any, width: int | None = None) -> None:
        self.path, self.dtype, self.width, self.rows = path, np.dtype(dtype), width, 0
        self._closing = ExitStack()

    def __enter__(self) -> GrowingArray:
        self._stream = self._closing.enter_context(written(self.path))
        self._stream.write(header_of((0,), self.dtype))
        return self

    def append(self, block: np.ndarray) -> None:
        """Rows at the end."""
        self._stream.write(np.ascontiguousarray(block, dtype=self.dtype).data.cast("B"))
        self.rows += len(block)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            shape = (self.rows,) if self.width is None else (self.rows, self.width)
            self._stream.seek(0)
            self._stream.write(header_of(shape, self.dtype))
        self._closing.__exit__(kind, error, trace)


class GrowingLists:
    """Lists as NAME.values.npy and NAME.offsets.npy. A context manager."""

    def __init__(self, folder: Path, name: str, dtype: Any = np.int32) -> None:
        self._values = GrowingArray(folder / f"{name}.values.npy", dtype)
        self._offsets = GrowingArray(folder / f"{name}.offsets.npy", np.int64)
        self._closing = ExitStack()

    def __enter__(self) -> GrowingLists:
        self._closing.enter_context(self._values)
        self._closing.enter_context(self._offsets)
        self._offsets.append(np.zeros(1, dtype=np.int64))
        return self

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Lists at the end."""
        self._offsets.append(offsets_of(lengths)[1:] + self._values.rows)
        self._values.append(values)

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)


class RangeArray:
    """A file of a known shape; ranks of one folder each write rows of their own."""

    @staticmethod
    def create(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        """An array of zeros."""
        kind = np.dtype(dtype)
        with written(path) as stream:
            stream.write(header_of(shape, kind))
            stream.truncate(HEADER_BYTES + int(np.prod(shape)) * kind.itemsize)

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, first: int, block: np.ndarray) -> None:
        """Rows first.. of the array."""
        if len(block):
            with names_file(self.path), self.path.open("r+b") as stream:
                stream.seek(HEADER_BYTES + first * (block.nbytes // len(block)))
                stream.write(np.ascontiguousarray(block).data.cast("B"))


def mapped(path: Path) -> np.ndarray:
    """An array, mapped; pages are read when they are touched.

    Raises:
        Mistake: where the file is none.
    """
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (ValueError, EOFError) as error:
        raise Mistake(f"{path} is no array ({error}): export or copy the bundle again") from error


def mapped_as(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of a known shape and type, mapped.

    Raises:
        Mistake: where the file is none, or of others.
    """
    array = mapped(path)
    if array.shape != shape or array.dtype != dtype:
        raise Mistake(
            f"{path} holds {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {[*shape]}: "
            "export the bundle again"
        )
    return array


def mapped_lists(folder: Path, name: str) -> Jagged:
    """Lists that `GrowingLists` wrote."""
    return Jagged(mapped(folder / f"{name}.values.npy"), mapped(folder / f"{name}.offsets.npy"))
