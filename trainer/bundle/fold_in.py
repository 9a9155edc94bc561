"""Somebody new before a model that reads no histories: a vector made of the items' that they name.

    q = sum over the items of max(count, 1)^(-1/4) * (v - mean of all v), divided by its length

What all items share says nothing of taste, and what many take says less. Measured beside the
vectors of trained users, who took the same items: docs/quality.md, "Somebody new".

Shapes: I items, D width, N rows of vectors, n items that are named.
"""

from __future__ import annotations

import numpy as np

from trainer.bundle.vectors.stored_vectors import StoredVectors

ROWS_OF_MEAN = 1 << 16
"""Of a larger catalog the mean is that of so many rows, evenly spread."""
COUNT_POWER = -0.25


def centre_of(vectors: StoredVectors, known_I: np.ndarray) -> np.ndarray:
    """Mean vector of the items that are known, float32 [D]."""
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), ROWS_OF_MEAN)).astype(np.int64)
    rows = rows[np.asarray(known_I[rows])]
    if not len(rows):
        return np.zeros(vectors.code_ND.shape[1], dtype=np.float32)
    mean_D: np.ndarray = vectors.at(rows).mean(axis=0)
    return mean_D


def folded_in(
    vectors: StoredVectors, centre_D: np.ndarray, count_I: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """A query of length 1, float32 [D]; zeros for no rows. rows: of items that are known."""
    weight_n = np.maximum(count_I[rows], 1).astype(np.float32) ** COUNT_POWER
    total_D: np.ndarray = weight_n @ (vectors.at(rows) - centre_D)
    length = float(np.linalg.norm(total_D))
    return total_D / length if length else np.zeros_like(centre_D)
