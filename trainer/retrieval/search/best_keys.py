"""The best keys so far of a block of queries: exact scores of what the filter let through.

Tensor shapes: Q queries of the block, K = k, P pairs (query, item), D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.keys import EMPTY, encode_keys, scores_of

PAIRS_AT_ONCE = 1 << 12
"""Pairs scored anew at once: few enough for their rows to stay in the cache."""


class BestKeys:
    """The k best keys so far of every query of a block, and the pairs that wait to be merged in."""

    def __init__(self, items: ItemRows, query_QD: Tensor, k: int) -> None:
        self.items, self.query_QD, self.k = items, query_QD, k
        self.key_QK = torch.full((len(query_QD), k), EMPTY, device=query_QD.device)
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.num_waiting = 0

    def add(self, query_P: Tensor, item_P: Tensor) -> None:
        """Pairs of a query of the block and an item, counted from the rank's first row."""
        self.waiting.append((query_P, item_P))
        self.num_waiting += query_P.numel()

    def merge(self) -> None:
        """Fold the waiting pairs in, 4k a query at once, so that one greedy query stays cheap."""
        if not self.num_waiting:
            return
        query_P = torch.cat([query for query, _ in self.waiting])
        item_P = torch.cat([item for _, item in self.waiting])
        self.waiting, self.num_waiting = [], 0
        query_P, order = query_P.sort()
        key_P = self._keys(query_P, item_P[order])
        row, row_P, count = torch.unique_consecutive(
            query_P, return_inverse=True, return_counts=True
        )
        place_P = torch.arange(len(query_P), device=row.device) - (count.cumsum(0) - count)[row_P]
        width = 4 * self.k
        for first in range(0, int(count.max()), width):  # device-to-host sync
            now = ((place_P >= first) & (place_P < first + width)).nonzero().squeeze(1)
            touched, slot = torch.unique_consecutive(row_P[now], return_inverse=True)
            table = torch.full((len(touched), self.k + width), EMPTY, device=row.device)
            table[:, : self.k] = self.key_QK[row[touched]]
            table[slot, self.k + place_P[now] - first] = key_P[now]
            self.key_QK[row[touched]] = table.topk(self.k, dim=1).values

    def _keys(self, query_P: Tensor, item_P: Tensor) -> Tensor:
        """Exact keys of pairs."""
        keys = []
        parts = zip(query_P.split(PAIRS_AT_ONCE), item_P.split(PAIRS_AT_ONCE), strict=True)
        for query, item in parts:
            product_PD = self.query_QD.index_select(0, query)
            product_PD *= self.items.embedding_ID.index_select(0, item)
            score_P = product_PD.sum(1, dtype=torch.float64)
            keys.append(encode_keys(score_P, item + self.items.first_row))
        return torch.cat(keys)

    def threshold(self) -> Tensor:
        """What a later item must score at least to be among the k best, [Q]."""
        kth_Q = scores_of(self.key_QK[:, -1])
        # A later item loses a tie, so a k-th score of zero asks for more than zero: then a query or
        # a group of items that is all zeros passes nothing on.
        return kth_Q.masked_fill(kth_Q == 0, torch.finfo(torch.float32).tiny)
