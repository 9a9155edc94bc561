"""What an evaluation counts of the rankings, block by block: means, by group, and item exposure.

Tensor shapes: q queries of the rank, K ranked items, I items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.data.schema import Dataset
from trainer.retrieval.measures.activity import BANDS, band_of, named
from trainer.retrieval.measures.ranking import disliked_metrics, is_member, ranking_metrics
from trainer.retrieval.measures.totals import Exposure, Means
from trainer.retrieval.queries import QueryBlock
from trainer.retrieval.search.item_lists import ItemLists


class Tally:
    """Measures of one ranking, added up over blocks and ranks."""

    def __init__(
        self,
        dataset: Dataset,
        ks: Sequence[int],
        device: torch.device,
        group_I: Tensor | None,
        num_groups: int,
        is_new_I: Tensor | None = None,
        per_user: bool = False,
    ) -> None:
        """is_new_I: items that training never met, bool: as targets they are measured apart."""
        self.ks, self.device = ks, device
        self.group_I = group_I
        self.with_dislikes = dataset.has_feedback
        self.means = Means()
        self.by_group = [Means() for _ in range(num_groups)]
        self.by_activity = [Means() for _ in BANDS] if num_groups else []
        self.is_new_I, self.new = is_new_I, Means()
        self.exposure = Exposure(dataset.num_items, ks, device)
        self.each = PerUser() if per_user else None

    def add(self, item_qK: Tensor, own: QueryBlock) -> None:
        """Rankings [q, K] of this rank's own queries, padding included."""
        real_q = (own.user_Q >= 0).to(self.device)
        targets = own.targets.to(self.device)
        hit_qK = is_member(item_qK, targets)
        found = ranking_metrics(hit_qK, targets.lengths, self.ks)
        headline = _headline(found)
        self.means.add(found, real_q)
        if self.each is not None:
            self.each.add(own.user_Q, headline)
        if self.by_activity:
            band_q = band_of(own.seen.lengths.to(self.device))
            for band, means in enumerate(self.by_activity):
                means.add(headline, real_q & (band_q == band))
        if self.with_dislikes:
            disliked = own.disliked_targets.to(self.device)
            self.means.add(disliked_metrics(item_qK, disliked, self.ks), real_q)
        self.exposure.add(item_qK[real_q])
        if self.group_I is not None:
            self._add_groups(item_qK, hit_qK, targets, self.group_I)

    def _add_groups(
        self, item_qK: Tensor, hit_qK: Tensor, targets: ItemLists, group_I: Tensor
    ) -> None:
        """Each group's targets are measured as if they were all the targets there are."""
        for group, means in enumerate(self.by_group):
            self._add_part(means, item_qK, hit_qK, targets, group_I == group)
        if self.is_new_I is not None:
            self._add_part(self.new, item_qK, hit_qK, targets, self.is_new_I)

    def _add_part(
        self, means: Means, item_qK: Tensor, hit_qK: Tensor, targets: ItemLists, part_I: Tensor
    ) -> None:
        within = targets.keep(part_I[targets.values])
        hit_within_qK = hit_qK & part_I[item_qK.clamp(min=0)]
        values = ranking_metrics(hit_within_qK, within.lengths, self.ks)
        means.add(_headline(values), within.lengths > 0)

    def values(self) -> dict[str, float]:
        """Means over all ranks' queries, coverage and Gini. Collective, once."""
        self.means.all_reduce()  # collective
        self.exposure.all_reduce()  # collective
        return {**self.means.means(), **self.exposure.values()}

    def all_values(
        self,
    ) -> tuple[dict[str, float], dict[str, list[float]], dict[str, dict[str, float]]]:
        """Values, those of groups, and by activity. Collective, once."""
        return self.values(), self.group_values(), self.activity_values()  # collective

    def activity_values(self) -> dict[str, dict[str, float]]:
        """Values by how many items users have met, of bands with users. Collective, once."""
        found = {}
        for band, means in enumerate(self.by_activity):
            means.all_reduce()  # collective
            users = means.users()  # device-to-host sync
            if users:
                found[named(band)] = {**means.means(), "users": users}
        return found

    def group_values(self) -> dict[str, list[float]]:
        """Values of each group, least popular first. Collective, once."""
        for means in self.by_group:
            means.all_reduce()  # collective
        each = [means.means() for means in self.by_group]
        return {name: [values[name] for values in each] for name in each[0]} if each else {}

    def new_values(self) -> dict[str, float]:
        """Recall and NDCG of items that training never met, over the "users" who have such targets;
        {} where nobody has. Collective, once."""
        if self.is_new_I is None:
            return {}
        self.new.all_reduce()  # collective
        users = self.new.users()  # device-to-host sync
        return {**self.new.means(), "users": users} if users else {}


def _headline(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that are told of groups, and kept of each user."""
    return {name: v for name, v in values.items() if name.startswith(("recall", "ndcg"))}


class PerUser:
    """Gathers each user's values over blocks and ranks: 4 bytes a user and name on every rank."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, np.ndarray]] = []

    def add(self, user_q: Tensor, values: dict[str, Tensor]) -> None:
        """Values float64 [q] of users; -1 is padding."""
        real_q = user_q >= 0
        block = {"user": user_q[real_q].cpu().numpy()}
        for name, value_q in values.items():
            block[name] = value_q[real_q.to(value_q.device)].float().cpu().numpy()
        self._blocks.append(block)

    def table(self) -> pa.Table:
        """All ranks' users, ascending. Collective; every rank has added the same names."""
        own = {
            name: np.concatenate([block[name] for block in self._blocks])
            for name in self._blocks[0]
        }
        parts: list[dict[str, np.ndarray]] = [own] * dist.get_world_size()
        dist.all_gather_object(parts, own)  # collective
        whole = {name: np.concatenate([part[name] for part in parts]) for name in own}
        order = np.argsort(whole["user"], kind="stable")
        return pa.table({name: values[order] for name, values in whole.items()})
