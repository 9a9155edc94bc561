"""The k best items of many users of a bundle, over the items that pass, which are the same for all.

Tensor shapes: Q users of a block, P items that pass, D width, K items kept of each user.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from trainer.bundle.answers import prepare, recommend
from trainer.bundle.asked import Ask, Filters
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.query_program import Query
from trainer.retrieval.search.filter import Filter
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.keys import decode_keys
from trainer.retrieval.search.topk import exact_topk

USERS_AT_ONCE = 1024
DEEPER = 8
"""Times k that is searched for under `--max-per`; who needs more is searched for alone."""


class EverybodyBatch:
    """The search of many users over the items that pass."""

    def __init__(self, bundle: Bundle, k: int, filters: Filters) -> None:
        self.bundle, self.k, self.filters = bundle, k, filters
        passing = prepare(bundle, self._ask(0)).passing.with_mask(bundle.ranked.mask_I)
        out = bundle.item_names.rows_of(filters.exclude)
        mask_I = np.zeros(bundle.manifest.items, dtype=bool)
        mask_I[passing.row_P if passing.row_P is not None else slice(None)] = True
        if passing.mask_I is not None:
            mask_I &= passing.mask_I
        mask_I[out[out >= 0]] = False
        self.row_P = np.flatnonzero(mask_I)
        whole = len(self.row_P) == len(mask_I)
        vectors = bundle.items
        item_PD = vectors.at(slice(0, len(vectors)) if whole else self.row_P)
        self.items: ItemRows | None = None
        if len(self.row_P):
            with warnings.catch_warnings():  # mapped files are not written, which torch warns of
                warnings.simplefilter("ignore", UserWarning)
                self.items = ItemRows(torch.from_numpy(item_PD))
        self.how = Filter.best_for(torch.device("cpu"))

    def table(self, rows: np.ndarray) -> pa.Table:
        """user, items, scores of user rows."""
        found = [
            pair
            for first in range(0, len(rows), USERS_AT_ONCE)
            for pair in self._block(rows[first : first + USERS_AT_ONCE])
        ]
        lengths = np.array([len(row_k) for row_k, _ in found], dtype=np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        none = (np.empty(0, np.int64), np.empty(0, np.float32))
        row_V, score_V = (np.concatenate(each) for each in zip(none, *found, strict=True))
        names = self.bundle.item_names.raw_id.take(pa.array(row_V.astype(np.int64)))
        scores = pa.array(score_V.astype(np.float32))
        return pa.table(
            {
                "user": self.bundle.user_names.raw_id.take(pa.array(rows)),
                "items": pa.ListArray.from_arrays(offsets, _one(names)),
                "scores": pa.ListArray.from_arrays(offsets, scores),
            }
        )

    def _block(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(item rows, scores) of each user."""
        query_QD = self._queries(rows)
        known_Q = np.asarray(query_QD.any(axis=1))
        k = self.k * (DEEPER if self.filters.max_per else 1)
        ranked: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64),) * 2] * len(rows)
        if self.items is not None and known_Q.any():
            key_QK = exact_topk(
                self.items, torch.from_numpy(query_QD), self._seen(rows), min(k, len(self.items)),
                self.how,
            )  # fmt: skip
            score_QK, place_QK = (each.numpy() for each in decode_keys(key_QK))
            ranked = [
                (self.row_P[place_K[place_K >= 0]], score_K[place_K >= 0])
                for place_K, score_K in zip(place_QK, score_QK, strict=True)
            ]
        for row, known, (row_K, score_K) in zip(rows, known_Q, ranked, strict=True):
            if not known:
                yield self._alone(int(row))
            elif not self.filters.max_per:
                yield row_K, score_K
            else:
                yield self._under_quota(int(row), row_K, score_K, k)

    def _queries(self, rows: np.ndarray) -> np.ndarray:
        """float32 [Q, D]; zeros for those of whom nothing is known."""
        bundle = self.bundle
        if bundle.users is not None:
            known = bundle.user_known_U[rows]
            return bundle.users.at(rows) * known[:, None].astype(np.float32)
        return bundle.program.encode(
            [
                Query(row, bundle.list_of("history", row), bundle.list_of("disliked", row))
                for row in rows.tolist()
            ]
        )

    def _seen(self, rows: np.ndarray) -> ItemLists:
        """Places among the items that pass of what users have seen."""
        lists = []
        for row in rows.tolist():
            seen = self.bundle.list_of("seen", row)
            place = np.searchsorted(self.row_P, seen)
            place = place[place < len(self.row_P)]
            lists.append(place[np.isin(self.row_P[place], seen)])
        offsets = np.cumsum([0, *map(len, lists)])
        values = np.concatenate([np.empty(0, np.int64), *lists])
        return ItemLists(torch.from_numpy(values), torch.from_numpy(offsets))

    def _under_quota(
        self, row: int, row_K: np.ndarray, score_K: np.ndarray, searched: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Down the ranking; a search of its own where it ends too early."""
        quota = prepare(self.bundle, self._ask(row)).quota
        assert quota is not None
        taken = [place for place, item in enumerate(row_K.tolist()) if quota.takes(item)]
        if len(taken) >= self.k or len(row_K) < searched:
            return row_K[taken[: self.k]], score_K[taken[: self.k]]
        return self._alone(row)

    def _alone(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """As `tandem recommend` answers one user."""
        found = recommend(self.bundle, self._ask(row))
        rows = np.array([item.row for item in found.items], dtype=np.int64)
        return rows, np.array(found.scores, dtype=np.float32)

    def _ask(self, row: int) -> Ask:
        user = str(self.bundle.user_names.id_of(row))
        return Ask(user=user, k=self.k, filters=self.filters)


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
