"""Items that are in no ranking of a block: of all queries, or of those that have seen them.

Tensor shapes: N items of a chunk, Q queries of the block, X items that are in no ranking.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.item_rows import ItemRows


class UnrankedByChunk:
    """Rows of each chunk's scores that no query is answered with."""

    def __init__(self, items: ItemRows, chunk_items: int) -> None:
        self.row_X, self.bounds = items.unranked_X, None
        if self.row_X is not None and len(self.row_X):
            starts = torch.arange(
                0, len(items) + chunk_items, chunk_items, device=self.row_X.device
            )
            self.bounds = torch.searchsorted(self.row_X, starts).tolist()  # sync, once a block
            self.place_X = self.row_X % chunk_items

    def remove(self, chunk: int, score_NQ: Tensor) -> None:
        """Put -inf at the chunk's unranked items."""
        if self.bounds is not None and self.bounds[chunk] < self.bounds[chunk + 1]:
            rows = self.place_X[self.bounds[chunk] : self.bounds[chunk + 1]]
            score_NQ.index_fill_(0, rows, -torch.inf)


class SeenByChunk:
    """Seen pairs of a block ordered by chunk, so that removing a chunk's pairs is one call."""

    def __init__(self, seen: ItemLists | None, items: ItemRows, chunk_items: int) -> None:
        self.bounds = None
        if seen is None or seen.values.numel() == 0:
            return
        row = seen.values - items.first_row
        mine = ((row >= 0) & (row < len(items))).nonzero().squeeze(1)
        row, order = row[mine].sort()
        self.place = (row % chunk_items) * len(seen) + seen.owners()[mine[order]]
        starts = torch.arange(0, len(items) + chunk_items, chunk_items, device=row.device)
        self.bounds = torch.searchsorted(row, starts).tolist()  # device-to-host sync, once a block

    def remove(self, chunk: int, score_NQ: Tensor) -> None:
        """Put -inf at the chunk's seen items."""
        if self.bounds is not None and self.bounds[chunk] < self.bounds[chunk + 1]:
            pairs = self.place[self.bounds[chunk] : self.bounds[chunk + 1]]
            score_NQ.view(-1).index_fill_(0, pairs, -torch.inf)
