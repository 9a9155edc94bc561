"""Rows as int8 codes: a fast estimate of scores, with a bound on what it is off by.

    codes.npy          int8 [N, D]: round(row / scale)
    code_scales.npy    float32 [N]
    code_errors.npy    float32 [N]: length of row - scale * code

The estimate is the product of two rows of codes, an integer, which SimSIMD takes with the
processor's instructions for int8. A quarter of the bytes are read, and by the bound nobody who
scores anew what may be among the best misses any of them.

Shapes: N rows, n rows of a block, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trainer.bundle.flat_arrays import RangeArray, mapped_as

LARGEST_CODE = 127
NAMES = {"codes.npy": np.int8, "code_scales.npy": np.float32, "code_errors.npy": np.float32}


def _shapes(rows: int, width: int) -> dict[str, tuple[int, ...]]:
    return {name: (rows, width) if of is np.int8 else (rows,) for name, of in NAMES.items()}


def rounded(vector_nD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes int8 [n, D], scales float32 [n]) of float32 rows; a row of zeros has scale 1."""
    scale_n = np.abs(vector_nD).max(axis=1, initial=0).astype(np.float32) / LARGEST_CODE
    scale_n[scale_n == 0] = 1
    return np.rint(vector_nD / scale_n[:, None]).astype(np.int8), scale_n


def _error(vector_nD: np.ndarray, code_nD: np.ndarray, scale_n: np.ndarray) -> np.ndarray:
    """Lengths of what the codes leave out, float32 [n], rounded up."""
    rest_nD = vector_nD.astype(np.float64) - scale_n[:, None].astype(np.float64) * code_nD
    return (np.linalg.norm(rest_nD, axis=1) * (1 + 2.0**-22)).astype(np.float32)


@cache
def products() -> Any:
    """SimSIMD's products of all pairs of rows; None where it is not installed."""
    try:
        from simsimd import cdist
    except ImportError:
        return None
    return cdist


@dataclass(frozen=True)
class CodedQuery:
    """A query as codes, with the length of what they leave out."""

    code_1D: np.ndarray
    scale: np.float32
    norm: np.float32
    error: np.float32

    @staticmethod
    def of(query_D: np.ndarray) -> CodedQuery:
        """The codes of a float32 query."""
        code_1D, (scale,) = rounded(query_D[None])
        norm, error = np.linalg.norm(query_D), _error(query_D[None], code_1D, scale[None])[0]
        return CodedQuery(code_1D, scale, norm, error)


@dataclass(frozen=True)
class RowCodes:
    """The codes of all rows."""

    code_ND: np.ndarray
    scale_N: np.ndarray
    error_N: np.ndarray | None
    """None: the rows are nothing but what the codes say."""

    @staticmethod
    def create(folder: Path, rows: int, width: int) -> None:
        """The three files, of zeros."""
        for name, shape in _shapes(rows, width).items():
            RangeArray.create(folder / name, shape, NAMES[name])

    @staticmethod
    def write(folder: Path, first: int, vector_nD: np.ndarray) -> None:
        """Codes of the rows first.. , which are float32 as they are stored."""
        code_nD, scale_n = rounded(vector_nD)
        error_n = _error(vector_nD, code_nD, scale_n)
        for name, block in zip(NAMES, (code_nD, scale_n, error_n), strict=True):
            RangeArray(folder / name).write(first, block)

    @staticmethod
    def opened(folder: Path, rows: int, width: int) -> RowCodes | None:
        """The codes of a folder; None: it has none. Raises Mistake where they are of other rows."""
        if not (folder / "codes.npy").is_file():
            return None
        shapes = _shapes(rows, width)
        return RowCodes(*(mapped_as(folder / name, shapes[name], NAMES[name]) for name in NAMES))

    def scores(
        self, query: CodedQuery, norm_n: np.ndarray, rows: slice | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(estimates, what each is off by at most but for rounding), float32 [n], of the scores.

        norm_n: of the rows as they are stored.
        """
        product = products()(query.code_1D, at(self.code_ND, rows), metric="dot", out_dtype="f32")
        estimate_n = np.asarray(product).reshape(-1)
        estimate_n *= at(self.scale_N, rows)
        estimate_n *= query.scale
        # <q, x> - <q', x'> = <q, x - x'> + <q - q', x'>, and x' is no longer than x and its error.
        off_n = norm_n * query.error
        if self.error_N is not None:
            off_n += at(self.error_N, rows) * (query.norm + query.error)
        return estimate_n, off_n


def at(array: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
    """Consecutive rows without a copy, or any, copied."""
    return array[rows] if isinstance(rows, slice) else array.take(rows, axis=0)
