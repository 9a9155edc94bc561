"""Vectors of items or users on disk: float32, float16, or int8 with a scale a row.

    vectors.npy   [N, D]     scales.npy   float32 [N], int8 alone: a row is its scale times it
    norms.npy     float32 [N]: of the rows as they are stored

Shapes: N rows, n rows of a block, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.base.mistake import Mistake
from trainer.bundle.choices import Precision
from trainer.bundle.flat_arrays import RangeArray, mapped

TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
LARGEST_CODE = 127


def packed(vector_nD: np.ndarray, precision: Precision) -> tuple[np.ndarray, np.ndarray]:
    """float32 rows as they are stored, and their scales [n] (ones but for int8)."""
    ones_n = np.ones(len(vector_nD), dtype=np.float32)
    match precision:
        case "float32":
            return vector_nD.astype(np.float32, copy=False), ones_n
        case "float16":
            largest = float(np.finfo(np.float16).max)
            if len(vector_nD) and np.abs(vector_nD).max() > largest:
                raise Mistake(f"--precision float16: a value is above {largest:g}: take float32")
            return vector_nD.astype(np.float16), ones_n
        case "int8":
            scale_n = np.abs(vector_nD).max(axis=1, initial=0).astype(np.float32) / LARGEST_CODE
            scale_n[scale_n == 0] = 1
            return np.rint(vector_nD / scale_n[:, None]).astype(np.int8), scale_n


def unpacked(code_nD: np.ndarray, scale_n: np.ndarray | None) -> np.ndarray:
    """Stored rows as float32 [n, D]."""
    vector_nD = code_nD.astype(np.float32, copy=False)
    return vector_nD if scale_n is None else vector_nD * scale_n[:, None]


class VectorWriter:
    """Ranks' rows of one side's vectors, which one rank creates the files of."""

    def __init__(self, folder: Path, precision: Precision) -> None:
        self.folder, self.precision = folder, precision

    def create(self, rows: int, width: int) -> None:
        """One rank, before any writes."""
        RangeArray.create(self.folder / "vectors.npy", (rows, width), TYPES[self.precision])
        RangeArray.create(self.folder / "norms.npy", (rows,), np.float32)
        if self.precision == "int8":
            RangeArray.create(self.folder / "scales.npy", (rows,), np.float32)

    def write(self, first: int, vector_nD: np.ndarray) -> None:
        """float32 rows first.. ."""
        code_nD, scale_n = packed(vector_nD, self.precision)
        RangeArray(self.folder / "vectors.npy").write(first, code_nD)
        scales = scale_n if self.precision == "int8" else None
        norm_n = np.linalg.norm(unpacked(code_nD, scales), axis=1).astype(np.float32)
        RangeArray(self.folder / "norms.npy").write(first, norm_n)
        if scales is not None:
            RangeArray(self.folder / "scales.npy").write(first, scales)


class StoredVectors:
    """Mapped vectors, given as float32."""

    def __init__(self, code_ND: np.ndarray, norm_N: np.ndarray, scale_N: np.ndarray | None) -> None:
        self.code_ND, self.norm_N, self.scale_N = code_ND, norm_N, scale_N

    @staticmethod
    def opened(folder: Path) -> StoredVectors:
        """The vectors of a folder, whatever their shape and precision."""
        code_ND, norm_N = mapped(folder / "vectors.npy"), mapped(folder / "norms.npy")
        quantised = code_ND.dtype == np.int8
        return StoredVectors(code_ND, norm_N, mapped(folder / "scales.npy") if quantised else None)

    @staticmethod
    def checked(folder: Path, precision: Precision, rows: int, width: int) -> StoredVectors:
        """The same; raises Mistake where they are not as a manifest says."""
        found = StoredVectors.opened(folder)
        code_ND, scale_N = found.code_ND, found.scale_N
        wanted = ((rows, width), TYPES[precision], rows)
        lengths = {len(found.norm_N), rows if scale_N is None else len(scale_N)}
        if (code_ND.shape, code_ND.dtype.type, *lengths) != wanted:
            raise Mistake(
                f"{folder}/vectors.npy holds {code_ND.dtype} {list(code_ND.shape)}, "
                f"the manifest says {precision} {[rows, width]}: export the bundle again"
            )
        return found

    def __len__(self) -> int:
        return len(self.code_ND)

    def slice(self, first: int, stop: int) -> np.ndarray:
        """Consecutive rows, float32 [n, D]; of float32 files without a copy."""
        scales = None if self.scale_N is None else self.scale_N[first:stop]
        return unpacked(self.code_ND[first:stop], scales)

    def take(self, row_n: np.ndarray) -> np.ndarray:
        """Any rows, float32 [n, D]."""
        scales = None if self.scale_N is None else self.scale_N.take(row_n)
        return unpacked(self.code_ND.take(row_n, axis=0), scales)
