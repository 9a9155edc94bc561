"""Measures of rankings against held-out targets, all queries at once.

For a query with targets T, a list L of K items and a cut-off k, with hit_r = 1 where the item at
rank r (from 1) is in T:

    recall@k  = hits among the first k / |T|                       (LightGCN's; not / min(k, |T|))
    ndcg@k    = sum_{r <= k} hit_r / log2(r + 1)  /  sum_{r <= min(k, |T|)} 1 / log2(r + 1)
    hit@k     = 1 if there is a hit among the first k
    mrr@k     = 1 / rank of the first hit, 0 if that is beyond k
    map@k     = sum_{r <= k} hit_r * (hits among the first r / r)  /  min(k, |T|)

Tensor shapes: Q queries, K length of the lists. No collectives run here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.retrieval.search.item_lists import ItemLists


def is_member(item_QK: Tensor, lists: ItemLists) -> Tensor:
    """bool [Q, K]: whether each ranked item is in its query's list. Item -1 (empty) never is."""
    if lists.values.numel() == 0:
        return torch.zeros_like(item_QK, dtype=torch.bool)
    stride = int(torch.maximum(lists.values.max(), item_QK.max())) + 1  # device-to-host sync
    listed = (lists.owners() * stride + lists.values).sort().values
    query_Q1 = torch.arange(len(item_QK), device=item_QK.device)[:, None]
    wanted_QK = query_Q1 * stride + item_QK
    place_QK = torch.searchsorted(listed, wanted_QK).clamp_(max=len(listed) - 1)
    return (listed[place_QK] == wanted_QK) & (item_QK >= 0)


def ranking_metrics(hit_QK: Tensor, num_targets_Q: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """float64 [Q] for each of recall, ndcg, hit, mrr and map at each k, by name (`recall@20`).

    Queries without targets get 0 in all of them: leave them out of means.
    """
    hits_QK = hit_QK.double()
    rank_K = torch.arange(1, hit_QK.size(1) + 1, device=hit_QK.device, dtype=torch.float64)
    discount_K = 1 / torch.log2(rank_K + 1)
    ideal_K = torch.nn.functional.pad(discount_K.cumsum(0), (1, 0))
    found_QK = hits_QK.cumsum(1)
    gain_QK = (hits_QK * discount_K).cumsum(1)
    precision_QK = (hits_QK * found_QK / rank_K).cumsum(1)
    first_QK = (hits_QK * (found_QK == 1) / rank_K).cumsum(1)
    values = {}
    for k in ks:
        possible_Q = num_targets_Q.clamp(max=k)
        at_least_one_Q = possible_Q.clamp(min=1)
        values[f"recall@{k}"] = found_QK[:, k - 1] / num_targets_Q.clamp(min=1)
        values[f"ndcg@{k}"] = gain_QK[:, k - 1] / ideal_K[at_least_one_Q]
        values[f"hit@{k}"] = (found_QK[:, k - 1] > 0).double()
        values[f"mrr@{k}"] = first_QK[:, k - 1]
        values[f"map@{k}"] = precision_QK[:, k - 1] / at_least_one_Q
    return values


def disliked_metrics(item_QK: Tensor, disliked: ItemLists, ks: Sequence[int]) -> dict[str, Tensor]:
    """float64 [Q] for each k: `disliked@k`, the share of the first k that the user disliked."""
    found_QK = is_member(item_QK, disliked).double().cumsum(1)
    return {f"disliked@{k}": found_QK[:, k - 1] / k for k in ks}


def gini(exposure_I: Tensor) -> float:
    """Inequality of exposure over all items: 0 is even, 1 - 1/I is all on one item.

    exposure_I: how often each item was recommended, [I], zeros included.
    """
    num_items = exposure_I.numel()
    shown = exposure_I[exposure_I > 0].double().sort().values
    if shown.numel() == 0:
        return 0.0
    rank = torch.arange(num_items - len(shown) + 1, num_items + 1, device=shown.device)
    weighted = (rank * shown).sum() / shown.sum()
    return float(2 * weighted / num_items - (num_items + 1) / num_items)
