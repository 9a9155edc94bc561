"""Popularity: the baseline that recommends what most users took, and groups of items by it.

Tensor shapes: I items, Q queries, K = k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.retrieval.measures.ranking import is_member
from trainer.retrieval.search.item_lists import ItemLists


class PopularityRanking:
    """Items by falling count, the lower row first among equals; seen items are left out.

    So are items that nobody took: of them nothing is known, and there may be a million.
    """

    def __init__(self, count_I: Tensor) -> None:
        self.num_taken = int((count_I > 0).sum())  # device-to-host sync
        self.item_I = count_I.argsort(descending=True, stable=True)
        self.place_I = torch.empty_like(self.item_I)
        self.place_I[self.item_I] = torch.arange(len(self.item_I), device=count_I.device)

    def topk(self, seen: ItemLists, k: int) -> Tensor:
        """The k most popular items that each query has not seen, int64 [Q, k]; -1 beyond them.

        Looks at the head of the ranking, and further down only for queries that saw most of it.
        """
        num_items = len(self.item_I)
        result_QK = self.item_I.new_full((len(seen), k), -1)
        open_q = torch.arange(len(seen), device=result_QK.device)
        head = min(4 * k, num_items)
        places = ItemLists(self.place_I[seen.values], seen.offsets)
        while len(open_q):
            chosen = torch.zeros(len(seen), dtype=torch.bool, device=result_QK.device)
            chosen[open_q] = True
            here = places.keep((places.values < head) & chosen[places.owners()])
            rows = ItemLists(here.values, torch.cat([here.offsets[:1], here.offsets[1:][open_q]]))
            all_places = torch.arange(head, device=result_QK.device).expand(len(open_q), -1)
            free = ~is_member(all_places, rows)
            position = free.cumsum(1) - 1
            row, place = (free & (position < k)).nonzero().unbind(1)
            taken = place < self.num_taken
            row, place = row[taken], place[taken]
            result_QK[open_q[row], position[row, place]] = self.item_I[place]
            done = (free.sum(1) >= k) | (head >= self.num_taken)
            open_q, head = open_q[~done], min(4 * head, num_items)
        return result_QK


def popularity_groups(count_I: Tensor, num_groups: int) -> Tensor:
    """Group of every item, int64 [I]: 0 holds the least popular, the last the most popular.

    Groups share the interactions of train about evenly, so the first holds most of the items
    (those never seen in train too) and the last a few.
    """
    order_I = count_I.argsort(stable=True)
    count = count_I[order_I].double()
    middle = count.cumsum(0) - count / 2
    group = (middle / count.sum().clamp(min=1) * num_groups).long().clamp_(max=num_groups - 1)
    result_I = torch.empty_like(order_I)
    result_I[order_I] = group
    return result_I
