"""`train --windows --export-to DIR`: after each window, the items whose vectors are others now.

    DIR/window-00007.parquet          item (row), raw_id, embedding: items whose vector changed, or
                                      that are new, since the files before it
    DIR/.digests/window-00007.npy     16 bytes an item: of the vector that it was last written with

All files in order, a later row in place of an earlier one of its item, are the item index. A file
is there whole or not at all; one that is written again after a failure is the same. Without the
digests of an earlier window, a file holds all items.

Block by block, each rank compares its part of the block with the digests and sends rank 0, which
writes, what differs. The bytes are the same for any number of ranks.

Shapes: b items of a block, n of them on this rank, D columns of a vector.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.bundle.flat_arrays import GrowingArray, mapped
from trainer.data.parquet import open_parquet
from trainer.distributed.agreement import first_decides, gather_at_first, together
from trainer.distributed.ranks import Ranks
from trainer.files.filesystems import is_uri
from trainer.files.writing import written

BLOCK_ITEMS = 1 << 15
"""Of all ranks together."""
DIGEST_BYTES = 16
NAME = re.compile(r"window-(\d{5,9})\.(?:parquet|npy)")


def check_folder(folder: str) -> None:
    """Raise Mistake where what changes cannot be written into a folder."""
    if is_uri(folder):
        raise Mistake(f"--export-to {folder}: name a folder, which a file is renamed in")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise Mistake(f"--export-to {folder} is no folder: name another")


def export_changed(
    folder: str,
    number: int,
    ranks: Ranks,
    items_file: str,
    num_items: int,
    candidates: Callable[[np.ndarray], Tensor],
) -> int:
    """Write the file of a window; how many items it has. Collective.

    Memory: the vectors of BLOCK_ITEMS items in all, on rank 0 of up to three times as many.

    Args:
        items_file: items.parquet, for the raw ids.
        candidates: item rows (-1: none) -> [n, D]; zeros where nothing is known. Collective.
    """
    each = -(-min(BLOCK_ITEMS, num_items) // ranks.world_size)
    with ExitStack() as stack:
        opened = partial(_WindowFile, Path(folder), number, items_file, stack)
        file = together(lambda: opened() if ranks.is_first else None)  # collective
        for start in range(0, num_items, each * ranks.world_size):
            stop = min(start + each * ranks.world_size, num_items)
            before_b = first_decides(partial(_before, file, start, stop))  # collective
            row_n = np.arange(start, stop)[ranks.rank * each : (ranks.rank + 1) * each]
            padded = np.full(each, -1)
            padded[: len(row_n)] = row_n
            found_nD = candidates(padded)[: len(row_n)]  # collective
            vector_nD = found_nD.float().cpu().numpy()  # device-to-host sync
            own = _changed(row_n, vector_nD, before_b[row_n - start])
            parts = gather_at_first(own)  # collective
            together(partial(_add, file, stop, before_b, parts))  # collective
        return first_decides(partial(_finish, file))  # collective


@dataclass(frozen=True)
class _Changed:
    """Rows whose vectors are others than before."""

    row_n: np.ndarray
    vector_nD: np.ndarray
    digest_n: np.ndarray


def _changed(row_n: np.ndarray, vector_nD: np.ndarray, before_n: np.ndarray) -> _Changed:
    """Those of consecutive rows; zeros are no vector."""
    known_n = (vector_nD != 0).any(axis=1)
    digest_n = before_n.copy()
    digest_n[known_n] = _digests(vector_nD[known_n])
    differs_n = digest_n != before_n
    return _Changed(row_n[differs_n], vector_nD[differs_n], digest_n[differs_n])


def _digests(vector_nD: np.ndarray) -> np.ndarray:
    """Of each vector, void [n]."""
    of_rows = (hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in vector_nD)
    return np.frombuffer(b"".join(of_rows), dtype=f"V{DIGEST_BYTES}")


def _before(file: _WindowFile | None, start: int, stop: int) -> np.ndarray:
    """Rank 0."""
    assert file is not None
    return file.digests.before(start, stop)


def _add(
    file: _WindowFile | None, stop: int, before_b: np.ndarray, parts: Sequence[_Changed]
) -> None:
    if file is not None:
        file.add(stop, before_b, parts)


def _finish(file: _WindowFile | None) -> int:
    """Rank 0."""
    assert file is not None
    return file.finish()


class _WindowFile:
    """Rank 0's: the file of a window and its digests, both there once `finish` was called."""

    def __init__(self, root: Path, number: int, items_file: str, stack: ExitStack) -> None:
        """stack: closes what is open, and removes what is not finished."""
        self._stack = stack
        self.digests = _Digests(root / ".digests", number, stack)
        self._path = root / f"window-{number:05d}.parquet"
        self._before = _newest(root, number)
        self._raw_ids = _Column(items_file, "raw_id", stack)
        self._partial = self._path.with_name(self._path.name + ".partial")
        stack.callback(self._partial.unlink, missing_ok=True)
        self._stream = stack.enter_context(written(self._partial))
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._items = 0

    def add(self, stop: int, before_b: np.ndarray, parts: Sequence[_Changed]) -> None:
        """The next block of items, which ends at `stop`: what differs, in order."""
        row_n = np.concatenate([part.row_n for part in parts])
        vector_nD = np.concatenate([part.vector_nD for part in parts])
        own_n = row_n - (stop - len(before_b))
        digest_b = before_b.copy()
        digest_b[own_n] = np.concatenate([part.digest_n for part in parts])
        self.digests.append(digest_b)
        flat = pa.array(vector_nD.reshape(-1), type=pa.float32())
        self._write(
            pa.table(
                {
                    "item": pa.array(row_n, type=pa.int64()),
                    "raw_id": self._raw_ids.next(len(digest_b)).take(pa.array(own_n)),
                    "embedding": pa.FixedSizeListArray.from_arrays(flat, vector_nD.shape[1]),
                }
            )
        )

    def finish(self) -> int:
        """How many items the file has."""
        assert self._writer is not None
        self._writer.write_table(pa.concat_tables(self._waiting))
        self._writer.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.digests.finish()
        self._partial.rename(self._path)
        return self._items

    def _write(self, table: pa.Table) -> None:
        """In row groups of BLOCK_ITEMS."""
        if self._writer is None:
            self._check_width(table.schema)
            self._writer = pq.ParquetWriter(
                self._stream, table.schema, compression="NONE", use_dictionary=False
            )
            self._stack.callback(_closed, self._writer)
        self._items += len(table)
        whole = pa.concat_tables([*self._waiting, table])
        while len(whole) > BLOCK_ITEMS:
            self._writer.write_table(whole.slice(0, BLOCK_ITEMS))
            whole = whole.slice(BLOCK_ITEMS)
        self._waiting = [whole]

    def _check_width(self, schema: pa.Schema) -> None:
        if self._before is None:
            return
        width = schema.field("embedding").type.list_size
        with open_parquet(str(self._before)) as file:
            there = file.schema_arrow.field("embedding").type.list_size
        if there != width:
            raise Mistake(
                f"{self._before} holds vectors of {there} columns, the model's have {width}: "
                "choose another --export-to"
            )


def _closed(writer: pq.ParquetWriter) -> None:
    """Close what is given up, whose stream may be full."""
    with suppress(OSError):
        writer.close()


class _Digests:
    """Rank 0's: digests of the vectors that items were last written with."""

    def __init__(self, root: Path, number: int, stack: ExitStack) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._path = root / f"window-{number:05d}.npy"
        self._path_before = _newest(root, number)
        self._before = None if self._path_before is None else _read(self._path_before)
        self._partial = self._path.with_name(self._path.name + ".partial")
        stack.callback(self._partial.unlink, missing_ok=True)
        self._closing = stack.enter_context(ExitStack())
        self._file = self._closing.enter_context(
            GrowingArray(self._partial, np.uint8, DIGEST_BYTES)
        )

    def before(self, start: int, stop: int) -> np.ndarray:
        """Of items start..stop-1, void; zeros: not written yet."""
        found = np.zeros((stop - start, DIGEST_BYTES), dtype=np.uint8)
        if self._before is not None:
            there = self._before[start:stop]
            found[: len(there)] = there
        return found.view(f"V{DIGEST_BYTES}").reshape(-1)

    def append(self, digest_b: np.ndarray) -> None:
        self._file.append(digest_b.view(np.uint8).reshape(-1, DIGEST_BYTES))

    def finish(self) -> None:
        """Those of this window and of the one before stay: it may be written once more."""
        self._closing.close()
        self._partial.rename(self._path)
        for other in self._path.parent.glob("window-*.npy"):
            if other not in (self._path, self._path_before):
                other.unlink()


def _read(path: Path) -> np.ndarray | None:
    """The digests of a file; None where it is damaged."""
    try:
        found = mapped(path)
    except Mistake:
        return None
    return found if found.dtype == np.uint8 and found.shape[1:] == (DIGEST_BYTES,) else None


def _newest(folder: Path, number: int) -> Path | None:
    """The file of the newest window before another."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("window-*")]
    earlier = [(int(name.group(1)), path) for name, path in found if name is not None]
    return max((each for each in earlier if each[0] < number), default=(0, None))[1]


class _Column:
    """A column of a Parquet file, from its first row to its last."""

    def __init__(self, path: str, name: str, stack: ExitStack) -> None:
        file = stack.enter_context(open_parquet(path))
        batches: Iterator[pa.RecordBatch] = file.iter_batches(BLOCK_ITEMS, columns=[name])
        self._arrays = (batch.column(0) for batch in batches)
        self._left: list[pa.Array] = []

    def next(self, rows: int) -> pa.ChunkedArray:
        """The next rows."""
        while sum(map(len, self._left)) < rows:
            self._left.append(next(self._arrays))
        whole = pa.chunked_array(self._left)
        self._left = whole.slice(rows).chunks
        return whole.slice(0, rows)
