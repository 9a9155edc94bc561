"""Means over queries, and exposure of items, gathered over blocks and ranks.

Tensor shapes: q queries of the rank, I items, C cut-offs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.retrieval.measures.ranking import gini


class Means:
    """Running means of values by name, each over the queries it is defined for."""

    def __init__(self) -> None:
        self.moments: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor], defined_q: Tensor) -> None:
        """Count float64 [q] values where `defined_q`."""
        for name, value_q in values.items():
            kept = value_q[defined_q]
            moments = torch.stack([kept.new_tensor(len(kept)), kept.sum(), kept.square().sum()])
            self.moments[name] = self.moments.get(name, 0) + moments

    def all_reduce(self) -> None:
        """Sum over the ranks. Collective; every rank has added the same names."""
        total = torch.stack(list(self.moments.values()))
        dist.all_reduce(total)  # collective
        self.moments = dict(zip(self.moments, total, strict=True))

    def means(self) -> dict[str, float]:
        """Mean by name, 0 where nothing was counted."""
        rows = {name: moments.tolist() for name, moments in self.moments.items()}
        return {name: total / max(count, 1) for name, (count, total, _) in rows.items()}

    def users(self) -> int:
        """Queries counted for the first of the values. A device-to-host sync."""
        return int(next(iter(self.moments.values()))[0])

    def intervals(self, population: float) -> dict[str, float]:
        """Half-widths of 95 % intervals of the means over all `population` queries there are.

        Normal approximation of the mean of a sample drawn without replacement: the standard error
        shrinks to zero as the sample becomes the population.
        """
        result = {}
        for name, moments in self.moments.items():
            count, total, squares = moments.tolist()
            if count < 2:
                result[name] = math.inf
                continue
            variance = max(squares - total * total / count, 0.0) / (count - 1)
            unseen = max(1 - count / population, 0.0)
            result[name] = 1.96 * math.sqrt(variance / count * unseen)
        return result


class Exposure:
    """How often each item is among the first k of a list, for every k.

    Memory: 4 bytes per item and cut-off, on every rank.
    """

    def __init__(self, num_items: int, ks: Sequence[int], device: torch.device) -> None:
        self.ks = ks
        self.times_CI = torch.zeros((len(ks), num_items), dtype=torch.int32, device=device)

    def add(self, item_qK: Tensor) -> None:
        """Count ranked items [q, K]; -1 is none."""
        for times_I, k in zip(self.times_CI, self.ks, strict=True):
            item = item_qK[:, :k].flatten()
            item = item[item >= 0]
            times_I.index_add_(0, item, torch.ones_like(item, dtype=torch.int32))

    def all_reduce(self) -> None:
        """Sum over the ranks. Collective."""
        dist.all_reduce(self.times_CI)  # collective

    def values(self) -> dict[str, float]:
        """`coverage@k`, the share of items in at least one list, and `gini@k`."""
        result = {}
        for times_I, k in zip(self.times_CI, self.ks, strict=True):
            result[f"coverage@{k}"] = float((times_I > 0).double().mean())
            result[f"gini@{k}"] = gini(times_I)
        return result
