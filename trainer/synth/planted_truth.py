"""The best recall that any model can reach on planted data, and the clusters behind it.

Each user's items are ranked by their true probability, what the user has seen left out. No ranking
has a higher expected recall; on the held-out rows it is measured, noise included.

Shapes: n = users, T = tastes, R = numbers of a cluster looked at, K = ranks.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.jagged import Jagged, offsets_of, take_ranges
from trainer.synth.planted import PlantedModel
from trainer.synth.planted_rows import PartRows

CUTOFFS = (10, 20, 50, 100)
USERS_AT_ONCE = 512
HELD_OUT = {"validation": 1, "test": 2}
NEW = "new"
"""What is best on test for items that training never sees; beside the splits' names."""


@dataclass
class BestPossible:
    """Sums over users of recall and NDCG of the true ranking of one split."""

    users: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value_n: np.ndarray) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value_n.sum())
        self.squares[name] = self.squares.get(name, 0.0) + float((value_n**2).sum())

    def merge(self, other: "BestPossible") -> None:
        self.users += other.users
        for name in other.sums:
            self.sums[name] = self.sums.get(name, 0.0) + other.sums[name]
            self.squares[name] = self.squares.get(name, 0.0) + other.squares[name]

    def summary(self) -> dict[str, float]:
        """Means, and the standard error of each under `<name>_error`."""
        result: dict[str, float] = {"users": self.users}
        for name, total in self.sums.items():
            mean = total / self.users
            variance = max(self.squares[name] / self.users - mean**2, 0.0)
            result[name] = round(mean, 5)
            result[f"{name}_error"] = round((variance / self.users) ** 0.5, 5)
        return result


def best_possible(
    model: PlantedModel,
    part: PartRows,
    split: int,
    users: int,
    among_I: np.ndarray | None = None,
) -> BestPossible:
    """Recall and NDCG of the true ranking over the first `users` users with targets.

    among_I: slots that count as targets, bool, such as those of new items; the ranking is of all
    items all the same, as an evaluation has it. None: all slots.
    """
    result = BestPossible()
    start_U = part.split_start(split)
    stop_U = start_U + part.held_out * part.is_held_U
    target_M = part.draws.liked_M
    if among_I is not None:
        target_M = target_M & among_I[part.draws.slot_M]
    liked_before = offsets_of(target_M)
    user_n = np.flatnonzero(liked_before[stop_U] > liked_before[start_U])[:users]
    for first in range(0, len(user_n), USERS_AT_ONCE):
        chosen_n = user_n[first : first + USERS_AT_ONCE]
        _add_users(result, model, part, target_M, start_U, stop_U, chosen_n)
    return result


def _add_users(
    result: BestPossible,
    model: PlantedModel,
    part: PartRows,
    target_M: np.ndarray,
    start_U: np.ndarray,
    stop_U: np.ndarray,
    user_n: np.ndarray,
) -> None:
    draws = part.draws
    seen = take_ranges(part.left_out_slot_M, draws.start_U[user_n], start_U[user_n])
    target = take_ranges(draws.slot_M, start_U[user_n], stop_U[user_n])
    liked = take_ranges(target_M, start_U[user_n], stop_U[user_n]).values
    target_user = np.repeat(np.arange(len(user_n)), np.diff(target.offsets))[liked]
    target_slot = target.values[liked]
    longest = int(np.diff(seen.offsets).max())
    taste_nT = draws.taste_UT[user_n]
    weight_nT = part.taste_weights(start_U[user_n], taste_nT)
    ranked_nK = _true_ranking(model, taste_nT, weight_nT, seen, CUTOFFS[-1], longest)
    hit = ranked_nK[target_user] == target_slot[:, None]
    found = hit.any(axis=1)
    place = hit.argmax(axis=1)
    targets_n = np.bincount(target_user, minlength=len(user_n))
    result.users += len(user_n)
    discount = 1 / np.log2(np.arange(CUTOFFS[-1]) + 2)
    for cutoff in CUTOFFS:
        inside = found & (place < cutoff)
        hits_n = np.bincount(target_user, inside, minlength=len(user_n))
        gain_n = np.bincount(target_user, inside * discount[place], minlength=len(user_n))
        ideal_n = np.cumsum(discount)[np.minimum(targets_n, cutoff) - 1]
        result.add(f"recall@{cutoff}", hits_n / targets_n)
        result.add(f"ndcg@{cutoff}", gain_n / ideal_n)


def _true_ranking(
    model: PlantedModel,
    taste_nT: np.ndarray,
    weight_nT: np.ndarray,
    seen: Jagged,
    top: int,
    longest: int,
) -> np.ndarray:
    """The `top` unseen slots of highest probability for each user, int64 [n, top]; -1 beyond."""
    users, ranks = len(taste_nT), len(model.chance_of_rank)
    looked = min(top + longest, ranks)
    slot = (np.arange(looked) * model.clusters)[None, None, :] + taste_nT[:, :, None]
    chance = (weight_nT[:, :, None] * model.chance_of_rank[:looked]).reshape(users, -1)
    slot = slot.reshape(users, -1)
    seen_key = np.repeat(np.arange(users), np.diff(seen.offsets)) * model.items + seen.values
    seen_key = seen_key[seen.values >= 0]
    known = np.isin(np.arange(users)[:, None] * model.items + slot, seen_key)
    chance[known | (slot >= model.items)] = 0
    best = np.argsort(-chance, axis=1, kind="stable")[:, :top]
    ranked = np.take_along_axis(slot, best, axis=1)
    ranked[np.take_along_axis(chance, best, axis=1) == 0] = -1
    if ranked.shape[1] < top:
        ranked = np.pad(ranked, ((0, 0), (0, top - ranked.shape[1])), constant_values=-1)
    return ranked


def write_truth(folder: Path, settings: dict[str, Any], best: dict[str, BestPossible]) -> None:
    """Write truth.json: the best possible, and where items stand."""
    clusters = settings["clusters"]
    truth = {
        "meaning": "best: recall and NDCG on the held-out rows of the ranking by the true "
        "probabilities, what the user has seen left out. No model can be expected to do better.",
        "best": {name: best[name].summary() for name in HELD_OUT if best[name].users},
        "cluster_of_item": f"(raw_id - 1) % {clusters}",
        "rank_in_cluster": f"(raw_id - 1) // {clusters}",
        "arguments": settings,
    }
    if best[NEW].users:
        truth["best_of_new_items"] = {"test": best[NEW].summary()}
    (folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
