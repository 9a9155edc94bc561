"""Rankings of all ranks' items brought together: each rank gets whole lists for its own queries.

Tensor shapes: W ranks, Q queries of the block (all ranks have the same), q = Q / W of them a
rank's own, K = k, D embedding width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def share_queries(query_qD: Tensor) -> Tensor:
    """The queries of all ranks in rank order, [Q, D]. Collective: all_gather, equal q."""
    world_size = dist.get_world_size()
    query_QD = query_qD.new_empty((world_size * len(query_qD), query_qD.size(1)))
    dist.all_gather_into_tensor(query_QD, query_qD.contiguous())  # collective
    return query_QD


def merge_rankings(key_QK: Tensor) -> Tensor:
    """From keys of this rank's items for all queries, to keys of all items for its own, [q, k].

    Collective: all_to_all. The bytes a rank sends are 8 * Q * k, whatever the catalog.
    """
    world_size = dist.get_world_size()
    k = key_QK.size(1)
    received = torch.empty_like(key_QK)
    dist.all_to_all_single(received, key_QK.contiguous())  # collective
    by_rank_WqK = received.unflatten(0, (world_size, -1))
    return by_rank_WqK.transpose(0, 1).flatten(1).topk(k, dim=1).values
