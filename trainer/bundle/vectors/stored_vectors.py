"""Vectors of items or users on disk: float32, float16, or int8 with a scale a row.

    vectors.npy   [N, D]     scales.npy   float32 [N], int8 alone: a row is its scale times it
    norms.npy     float32 [N]: of the rows as they are stored
    codes.npy     beside float32 and float16 that are searched: see row_codes.py

Shapes: N rows, n rows of a block, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.base.mistake import Mistake
from trainer.bundle.choices import Precision
from trainer.bundle.flat_arrays import RangeArray, mapped
from trainer.bundle.vectors.row_codes import RowCodes, at, rounded

TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


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
            return rounded(vector_nD)


def unpacked(code_nD: np.ndarray, scale_n: np.ndarray | None) -> np.ndarray:
    """Stored rows as float32 [n, D]."""
    vector_nD = code_nD.astype(np.float32, copy=False)
    return vector_nD if scale_n is None else vector_nD * scale_n[:, None]


class VectorWriter:
    """Ranks' rows of one side's vectors, which one rank creates the files of."""

    def __init__(self, folder: Path, precision: Precision, searched: bool = False) -> None:
        """searched: the best of all rows will be asked for, so that codes of them pay."""
        self.folder, self.precision = folder, precision
        self.coded = searched and precision != "int8"

    def create(self, rows: int, width: int) -> None:
        """One rank, before any writes."""
        RangeArray.create(self.folder / "vectors.npy", (rows, width), TYPES[self.precision])
        RangeArray.create(self.folder / "norms.npy", (rows,), np.float32)
        if self.precision == "int8":
            RangeArray.create(self.folder / "scales.npy", (rows,), np.float32)
        if self.coded:
            RowCodes.create(self.folder, rows, width)

    def write(self, first: int, vector_nD: np.ndarray) -> None:
        """float32 rows first.. ."""
        code_nD, scale_n = packed(vector_nD, self.precision)
        RangeArray(self.folder / "vectors.npy").write(first, code_nD)
        scales = scale_n if self.precision == "int8" else None
        stored_nD = unpacked(code_nD, scales)
        norm_n = np.linalg.norm(stored_nD, axis=1).astype(np.float32)
        RangeArray(self.folder / "norms.npy").write(first, norm_n)
        if self.coded:
            RowCodes.write(self.folder, first, stored_nD)
        if scales is not None:
            RangeArray(self.folder / "scales.npy").write(first, scales)


class StoredVectors:
    """Mapped vectors, given as float32."""

    def __init__(
        self,
        code_ND: np.ndarray,
        norm_N: np.ndarray,
        scale_N: np.ndarray | None,
        row_codes: RowCodes | None = None,
    ) -> None:
        self.code_ND, self.norm_N, self.scale_N = code_ND, norm_N, scale_N
        self.row_codes = row_codes if scale_N is None else RowCodes(code_ND, scale_N, None)

    @staticmethod
    def opened(folder: Path) -> StoredVectors:
        """The vectors of a folder, whatever their shape and precision."""
        code_ND, norm_N = mapped(folder / "vectors.npy"), mapped(folder / "norms.npy")
        quantised = code_ND.dtype == np.int8
        scale_N = mapped(folder / "scales.npy") if quantised else None
        codes = RowCodes.opened(folder, *code_ND.shape) if code_ND.ndim == 2 else None
        return StoredVectors(code_ND, norm_N, scale_N, codes)

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

    def at(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows, float32 [n, D]; consecutive ones of float32 files without a copy."""
        scales = None if self.scale_N is None else at(self.scale_N, rows)
        return unpacked(at(self.code_ND, rows), scales)

    def norms(self, rows: slice | np.ndarray) -> np.ndarray:
        """Their lengths, [n]."""
        return at(self.norm_N, rows)
