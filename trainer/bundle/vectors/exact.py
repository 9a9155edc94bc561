"""The k best items of one query or a few, exact over the stored vectors, under filters.

Chunks of items that pass are scored roughly, which only *filters*: an item goes on when its score
could reach the query's k-th so far, given a bound on what the rough one is off by. A query or a few
are scored by int8 codes where there are any, many by a product of matrices in float32. The few
items that go on are scored anew, float32 products summed in float64, so that the answer depends
neither on chunks nor on codes nor on how many queries are asked at once. Equal scores rank the
lower row first.

Shapes: Q queries, D width, I items, n items of a chunk, h items that went on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.bundle.vectors.passing import Chunk, Passing
from trainer.bundle.vectors.row_codes import CodedQuery, RowCodes, products
from trainer.bundle.vectors.stored_vectors import StoredVectors

LOWEST = np.finfo(np.float32).min
"""Below every score but that of what is left out, which is minus infinity."""
CHUNK_ITEMS = 1 << 15
SCORES_AT_ONCE = 1 << 21
"""Scores of a chunk: they stay in the cache."""
MOST_BY_CODES = {"float32": 2}
"""Queries at once that codes are faster for, by the type of the vectors (docs/benchmarks)."""
MOST_BY_CODES_OF_OTHERS = 8


Scored = tuple[np.ndarray, np.ndarray | np.floating]
"""Rough scores [n] of a query, and what each is off by at most, but for the rounding."""


@dataclass(frozen=True)
class Ranking:
    """Items of one query, best first."""

    row_k: np.ndarray
    """int64."""
    score_k: np.ndarray
    """float32."""


def exact_best(
    vectors: StoredVectors,
    query_QD: np.ndarray,
    passing: Passing,
    left_out: Sequence[np.ndarray],
    count_Q: Sequence[int],
    largest_norm: float,
    by_cosine: bool = False,
) -> list[Ranking]:
    """The `count_Q` best items of each query among those that pass.

    Args:
        query_QD: float32.
        left_out: rows that a query is not answered with, ascending.
        largest_norm: of any stored vector.
        by_cosine: items are divided by their norms; the query has to be of length 1.
    """
    query_QD = np.ascontiguousarray(query_QD, dtype=np.float32)
    # |score in float32 - exact score| <= rounding * |query| * |item|, twice over: of the item that
    # is looked at and of the k-th so far; and the exact score is rounded to float32 itself.
    rounding = (2 * (query_QD.shape[1] + 8) + 6) * 2.0**-24
    reach = 1.0 if by_cosine else largest_norm
    margin_Q = np.linalg.norm(query_QD, axis=1) * reach * rounding
    searches = [
        _Search(vectors, by_cosine, query_D, rows, k, margin)
        for query_D, rows, k, margin in zip(query_QD, left_out, count_Q, margin_Q, strict=True)
    ]
    size = max(1 << 12, min(CHUNK_ITEMS, SCORES_AT_ONCE // max(len(query_QD), 1)))
    scored = _rough_scores(vectors, query_QD)
    for chunk in passing.chunks(size):
        divisor_n = _divisors(vectors.norms(chunk.place)) if by_cosine else None
        for search, (score_n, off) in zip(searches, scored(chunk), strict=True):
            if divisor_n is not None:
                score_n, off = score_n / divisor_n, off / divisor_n
            search.look(chunk, score_n, off)
    return [search.ranking() for search in searches]


def _rough_scores(
    vectors: StoredVectors, query_QD: np.ndarray
) -> Callable[[Chunk], Iterator[Scored]]:
    most = MOST_BY_CODES.get(vectors.code_ND.dtype.name, MOST_BY_CODES_OF_OTHERS)
    if vectors.row_codes is None or products() is None or len(query_QD) > most:
        return _ByProduct(vectors, query_QD)
    return _ByCodes(vectors, vectors.row_codes, query_QD)


class _ByCodes:
    """Scores by the products of codes."""

    def __init__(self, vectors: StoredVectors, row_codes: RowCodes, query_QD: np.ndarray) -> None:
        self.vectors, self.row_codes = vectors, row_codes
        self.queries = [CodedQuery.of(query_D) for query_D in query_QD]

    def __call__(self, chunk: Chunk) -> Iterator[Scored]:
        norm_n = self.vectors.norms(chunk.place)
        for query in self.queries:
            yield self.row_codes.scores(query, norm_n, chunk.place)


class _ByProduct:
    """Scores by a product of matrices in float32."""

    def __init__(self, vectors: StoredVectors, query_QD: np.ndarray) -> None:
        self.vectors, self.query_QD = vectors, query_QD

    def __call__(self, chunk: Chunk) -> Iterator[Scored]:
        score_nQ = self.vectors.at(chunk.place) @ self.query_QD.T
        for score_n in score_nQ.T:
            yield np.ascontiguousarray(score_n), np.float32(0)


def _divisors(norm_n: np.ndarray) -> np.ndarray:
    return np.where(norm_n > 0, norm_n, np.float32(1))


class _Search:
    """One query's best so far."""

    def __init__(
        self,
        vectors: StoredVectors,
        by_cosine: bool,
        query_D: np.ndarray,
        left_out: np.ndarray,
        k: int,
        margin: float,
    ) -> None:
        self.vectors, self.by_cosine = vectors, by_cosine
        self.query_D, self.left_out, self.k, self.margin = query_D, left_out, k, margin
        self.row_h = np.empty(0, dtype=np.int64)
        self.score_h = np.empty(0, dtype=np.float32)
        self.bound = float(LOWEST)
        """What an item's rough score has to reach, with all that it may be off by."""

    def look(self, chunk: Chunk, score_n: np.ndarray, off: np.ndarray | np.floating) -> None:
        """Score anew what of a chunk may be among the best; off: beside the margin."""
        if not self.k:
            return
        if chunk.passes_n is not None:
            score_n[~chunk.passes_n] = -np.inf
        place = self._left_out_of(chunk)
        if len(place):
            score_n[place] = -np.inf
        if self.bound == LOWEST and len(score_n) > 4 * self.k:
            kth = np.partition(score_n - off, len(score_n) - self.k)[len(score_n) - self.k]
            self.bound = max(self.bound, float(kth) - 2 * self.margin)
        hit_h = np.flatnonzero(score_n + off >= self.bound)
        if not len(hit_h):
            return
        row_h = hit_h + chunk.first if chunk.rows is None else chunk.rows[hit_h]
        found_hD = self.vectors.at(row_h)
        if self.by_cosine:
            found_hD = found_hD / _divisors(self.vectors.norms(row_h))[:, None]
        exact_h = (found_hD * self.query_D).sum(axis=1, dtype=np.float64).astype(np.float32)
        self.row_h = np.concatenate([self.row_h, row_h])
        self.score_h = np.concatenate([self.score_h, exact_h])
        self._keep()

    def _left_out_of(self, chunk: Chunk) -> np.ndarray:
        """Places in a chunk of what is left out."""
        begin, end = np.searchsorted(self.left_out, (chunk.first, chunk.stop))
        rows = self.left_out[begin:end]
        if chunk.rows is None or not len(rows):
            return rows - chunk.first
        place = np.searchsorted(chunk.rows, rows)
        place = place[place < len(chunk.rows)]
        return place[np.isin(chunk.rows[place], rows)]

    def _keep(self) -> None:
        """Keep the k best, and raise the bound to what the last of them asks for."""
        order = np.lexsort((self.row_h, -self.score_h))[: self.k]
        self.row_h, self.score_h = self.row_h[order], self.score_h[order]
        if len(order) == self.k:
            self.bound = max(self.bound, float(self.score_h[-1]) - self.margin)

    def ranking(self) -> Ranking:
        return Ranking(self.row_h, self.score_h)
