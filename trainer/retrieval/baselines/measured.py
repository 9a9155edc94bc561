"""Baselines evaluated as models are: whole catalog, seen items left out, the same users."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.data.features import read_counts
from trainer.data.schema import Dataset
from trainer.launch.launcher import Worker
from trainer.retrieval.baselines.closed_forms import (
    MOST_SQUARE,
    PENALTIES,
    Pairs,
    Scorer,
    als,
    ease,
    item_neighbours,
    read_pairs,
    turbo_cf,
)
from trainer.retrieval.measures.cut_offs import cut_offs
from trainer.retrieval.measures.popularity import PopularityRanking
from trainer.retrieval.measures.tally import Tally
from trainer.retrieval.queries import of_split, sample_rows

QUERIES_AT_ONCE = 512
MOST_SCORES = 1 << 27
"""Scores of items, or of users, held at once: half a GiB."""
NAMES = ("popularity", "item neighbours", "Turbo-CF", "EASE", "ALS (implicit)")


@dataclass(frozen=True)
class Asking:
    """What baselines are evaluated on."""

    data: str
    split: str
    ks: Sequence[int]
    users: int | None = None
    """Sampled, as `evaluate_split` samples them; None: all."""
    names: Sequence[str] = NAMES


def measure_baselines(asking: Asking, worker: Worker) -> list[dict[str, Any]]:
    """Each baseline's `name`, `values`, `seconds` and `setting`; `left_out` says why it has none.

    Work of one rank: memory of the pairs, of a block of scores and, for EASE, of items by items.
    """
    dataset = Dataset.load(asking.data)
    pairs = cache(lambda: read_pairs(dataset))
    found: list[dict[str, Any]] = []
    for place, name in enumerate(asking.names):
        worker.progress.update("baselines", place, len(asking.names))
        started = time.perf_counter()
        scorer, setting = _scorer(name, pairs, dataset)
        if scorer is None and name != "popularity":
            found.append({"name": name, "left_out": setting})
            continue
        values = evaluated(scorer, dataset, asking.split, asking.ks, asking.users)
        seconds = time.perf_counter() - started
        found.append({"name": name, "values": values, "seconds": seconds, "setting": setting})
    worker.progress.update("baselines", len(asking.names), len(asking.names))
    return found


def _scorer(name: str, pairs: Callable[[], Pairs], dataset: Dataset) -> tuple[Scorer | None, str]:
    """A baseline's scores, and its setting; None, and why there are none. Popularity has none."""
    if name == "item neighbours":
        return item_neighbours(pairs()), "weighted"
    if name == "Turbo-CF":
        return turbo_cf(pairs()), "second order"
    if name == "EASE":
        return _best_ease(pairs, dataset)
    if name == "ALS (implicit)":
        scorer = als(pairs())
        return scorer, "64 wide" if scorer else "implicit is not installed"
    return None, ""


def _best_ease(pairs: Callable[[], Pairs], dataset: Dataset) -> tuple[Scorer | None, str]:
    """By the penalty that is best on validation."""
    if dataset.num_items > MOST_SQUARE:
        return None, f"{dataset.num_items:,} items are too many to invert: at most {MOST_SQUARE:,}"
    if not dataset.splits["validation"].queries:
        return ease(pairs(), PENALTIES[1]), f"penalty {PENALTIES[1]:g}"

    k = min(20, dataset.num_items)

    def quality(penalty: float) -> float:
        values = evaluated(ease(pairs(), penalty), dataset, "validation", (k,), 2_000)
        return values[f"ndcg@{k}"]

    best = max(PENALTIES, key=quality)
    return ease(pairs(), best), f"penalty {best:g}"


def evaluated(
    scorer: Scorer | None, dataset: Dataset, split: str, ks: Sequence[int], users: int | None
) -> dict[str, float]:
    """Values by name, as `evaluate_split` has them; no scorer: popularity. Collective of one."""
    cpu, ks = torch.device("cpu"), cut_offs(ks, dataset)
    count_I = read_counts(dataset, "item", "count")
    asked = of_split(dataset, split, count_I)
    tally = Tally(dataset, ks, cpu, None, 0)
    popular = PopularityRanking(torch.from_numpy(count_I))
    most = max(1, min(QUERIES_AT_ONCE, MOST_SCORES // max(dataset.num_items, dataset.num_users)))
    for block in asked.read(sample_rows(asked.num_queries, users, 0), most):
        if scorer is None:
            tally.add(popular.topk(block.seen, max(ks)), block)
            continue
        score_QI = scorer(block.user_Q).masked_fill_(torch.from_numpy(count_I == 0), -torch.inf)
        score_QI[block.seen.owners(), block.seen.values] = -torch.inf
        tally.add(_best(score_QI, max(ks)), block)
    return tally.values()  # collective


def _best(score_QI: Tensor, k: int) -> Tensor:
    """Items by falling score, int64 [Q, k]; -1 where there is none."""
    best = score_QI.topk(k, dim=1)
    return best.indices.masked_fill(best.values == -torch.inf, -1)
