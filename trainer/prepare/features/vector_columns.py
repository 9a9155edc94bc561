"""Vectors of users and items on their way to flat files: read once, written where their rows lie.

Memory stays that of a block of vectors, whatever the catalog; the file is mapped and written row by
row in whatever order the source has.

Shapes: n = vectors of a block, W = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from trainer.base.mistake import Mistake
from trainer.data.feature_types import LARGEST_VECTOR, VECTORS, Attribute, VectorFile
from trainer.data.schema import Dataset
from trainer.data.vectors import TYPES, Vectors, type_of
from trainer.sources import sql
from trainer.sources.text_files import readable

BYTES_AT_ONCE = 64 << 20
Block = tuple[np.ndarray, np.ndarray]
"""Rows [n] and their vectors [n, W]."""


@dataclass(frozen=True)
class VectorColumn:
    """A column of vectors: `SELECT raw, value` (FLOAT[]) of a source, or a file of numpy."""

    label: str
    """How messages call it."""
    select: str = ""
    file: str = ""
    """A .npy file [n, W]; its rows are those of the side table, in its order."""
    ids: str = ""
    """Of a file: SELECT of the id rows in the file's order."""

    def width(self, connection: duckdb.DuckDBPyConnection) -> int | str:
        """W; or why there is none."""
        if self.file:
            return int(open_numbers(self.file).shape[1])
        with readable(self.label, "a table"):
            shortest, longest, there = sql.one(
                connection,
                f"SELECT min(len(value)), max(len(value)), count(value) FROM ({self.select}) "
                "WHERE len(value) > 0",
            )
        if not there:
            return "holds no value"
        if shortest != longest:
            return f"holds lists of {shortest} to {longest} numbers, a vector has one length"
        if longest > LARGEST_VECTOR:
            return f"holds vectors of {longest:,} numbers, at most {LARGEST_VECTOR:,} are possible"
        return int(longest)

    def blocks(
        self, connection: duckdb.DuckDBPyConnection, side: str, width: int
    ) -> Iterator[Block]:
        """The vectors of known ids of a side, block by block."""
        count = max(1, BYTES_AT_ONCE // (4 * width))
        if self.file:
            row_N = connection.execute(self.ids).fetchnumpy()["row"]
            vectors = open_numbers(self.file)
            if len(row_N) != len(vectors):
                raise Mistake(
                    f"{self.label} holds {len(vectors):,} vectors for {len(row_N):,} rows: it must "
                    "have one for each row of the table, in its order"
                )
            for start in range(0, len(row_N), count):
                yield row_N[start : start + count], np.asarray(vectors[start : start + count])
            return
        id_type = sql.columns_of(connection, f"{side}s")["raw"]
        with readable(self.label, "a table"):
            reader = connection.sql(
                f"""SELECT {side}s.row, v.value FROM ({self.select}) AS v
                JOIN {side}s ON {side}s.raw = TRY_CAST(v.raw AS {id_type})
                WHERE len(v.value) > 0"""
            ).to_arrow_reader(count)
            for batch in reader:
                row_n = batch.column(0).to_numpy(zero_copy_only=False)
                yield row_n, _matrix(batch.column(1), width)


def _matrix(column: pa.Array, width: int) -> np.ndarray:
    """Lists of one length as [n, W]; nulls among their numbers become NaN."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def open_numbers(path: str) -> np.ndarray:
    """A .npy file of float vectors, mapped; raises Mistake where it is none."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise Mistake(f"{path} is no .npy file of numbers ({error})") from error
    if found.ndim != 2 or found.dtype.kind not in "fiu" or not 0 < found.shape[1] <= LARGEST_VECTOR:
        raise Mistake(
            f"{path} holds an array of shape {found.shape} and type {found.dtype}: it must be "
            f"[rows, width] numbers, of width 1 to {LARGEST_VECTOR:,}"
        )
    return found


def write_vectors(
    connection: duckdb.DuckDBPyConnection,
    out: Path,
    side: str,
    attribute: Attribute,
    rows: int,
    column: VectorColumn | None,
    parent: Dataset | None,
) -> Attribute:
    """Write the vectors of new rows, and changed ones of old rows; the attribute with its files.

    Args:
        rows: of the whole side, the parent's among them.
        column: None: no row has a new one.
        parent: the dataset being extended; its files stay as they are where nothing changed.
    """
    old, files = attribute.vectors, list(attribute.vectors)
    before, number, width = sum(each.rows for each in old), len(old), attribute.width
    stem = f"{VECTORS}/{side}.{attribute.name.replace('/', '_')}-{number:05d}"
    (out / VECTORS).mkdir(exist_ok=True)
    known = Vectors(parent, attribute) if parent is not None and old else None
    for kind in TYPES:
        changed = _Changed(known, width)
        name = f"{stem}.{kind}"
        blocks = iter(()) if column is None else column.blocks(connection, side, width)
        label = "" if column is None else column.label
        if _write(out / name, blocks, before, rows, width, label, changed):
            break
        (out / name).unlink(missing_ok=True)
    if rows > before:
        files.append(VectorFile(name, rows - before))
    for place, vectors in changed.files(old).items():
        renamed = f"{stem}-{place}.{old[place].file.rsplit('.', 1)[-1]}"
        vectors.tofile(out / renamed)
        (out / old[place].file).unlink()
        files[place] = replace(old[place], file=renamed)
    return replace(attribute, vectors=tuple(files))


class _Changed:
    """New vectors for rows that have one."""

    def __init__(self, known: Vectors | None, width: int) -> None:
        self._known, self._width = known, width
        self._rows: list[np.ndarray] = []
        self._vectors: list[np.ndarray] = []

    def add(self, row_n: np.ndarray, vector_nW: np.ndarray) -> None:
        """Keep those that differ from what is known."""
        if self._known is None or not len(row_n):
            return
        held_nW = self._known.take(row_n)
        new_n = (held_nW != vector_nW.astype(held_nW.dtype)).any(axis=1)
        self._rows.append(row_n[new_n])
        self._vectors.append(vector_nW[new_n])

    def files(self, old: Sequence[VectorFile]) -> dict[int, np.ndarray]:
        """By place among the old files, those that change, whole."""
        if self._known is None or not self._rows:
            return {}
        row_n, vector_nW = np.concatenate(self._rows), np.concatenate(self._vectors)
        changed, start = {}, 0
        for place, file in enumerate(old):
            here_n = (row_n >= start) & (row_n < start + file.rows)
            if here_n.any():
                whole = self._known.take(np.arange(start, start + file.rows))
                whole[row_n[here_n] - start] = vector_nW[here_n]
                changed[place] = whole.astype(type_of(file.file))
            start += file.rows
        return changed


def _write(
    path: Path,
    blocks: Iterator[Block],
    before: int,
    rows: int,
    width: int,
    label: str,
    changed: _Changed,
) -> bool:
    """Write the rows from `before` on; False where float16 does not hold a number."""
    dtype = type_of(path.name)
    new = rows - before
    out = np.memmap(path, dtype=dtype, mode="w+", shape=(new, width)) if new else None
    for row_n, vector_nW in blocks:
        good = int(np.count_nonzero(np.isfinite(vector_nW).all(axis=1)))
        if good < len(row_n):
            raise Mistake(
                f"{label}: {len(row_n) - good:,} of {len(row_n):,} vectors hold a number "
                "that is missing or not finite: leave those rows' vectors out, or correct them"
            )
        with np.errstate(over="ignore"):
            typed_nW = vector_nW.astype(dtype)
        if not np.isfinite(typed_nW).all():
            return False
        is_new_n = row_n >= before
        if out is not None:
            out[row_n[is_new_n] - before] = typed_nW[is_new_n]
        changed.add(row_n[~is_new_n], typed_nW[~is_new_n])
    if out is not None:
        out.flush()
    return True
