"""Exact evaluation over the whole catalog, sharded over the ranks.

    every rank: encodes its own range of items, once
    block of queries ── each rank encodes its share ── all_gather ──> all queries on every rank
        each rank: exact top-k among its own items, seen items removed
        all_to_all ──> each rank: whole rankings of its share ── measures ──> sums ── all_reduce

Tensor shapes: Q queries of a block, q of them the rank's own, K = the largest k, I items.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import torch
import torch.distributed as dist

from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks
from trainer.model.two_tower import TwoTower
from trainer.retrieval.encode import Encoder, is_known
from trainer.retrieval.measures.cut_offs import DEFAULT, check_queries, cut_offs
from trainer.retrieval.measures.popularity import PopularityRanking, popularity_groups
from trainer.retrieval.measures.tally import Tally
from trainer.retrieval.queries import Asked, QueryBlock, of_split, sample_rows
from trainer.retrieval.search.filter import Filter
from trainer.retrieval.search.keys import decode_keys
from trainer.retrieval.search.merge import merge_rankings, share_queries
from trainer.retrieval.search.topk import exact_topk

QUERIES_AT_ONCE = {"cpu": 1024, "cuda": 4096}


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    values: dict[str, float]
    """By name, such as `recall@20`."""
    user_intervals: dict[str, float]
    """Half-widths of 95 % intervals for the mean over users like these: those evaluated are taken
    as drawn from endlessly many."""
    intervals: dict[str, float]
    """Half-widths of 95 % intervals; empty where all users were evaluated."""
    groups: dict[str, list[float]]
    """`recall@k`, `ndcg@k` within each popularity group of targets, least popular first."""
    activity: dict[str, dict[str, float]]
    """`recall@k`, `ndcg@k` and the number of "users", by how many items users have met before."""
    new_items: dict[str, float]
    """`recall@k`, `ndcg@k` of targets that training never met, and "users" who have such; {} where
    nobody has."""
    baseline: dict[str, float]
    """The values of the popularity ranking; empty where it was not asked for."""
    baseline_groups: dict[str, list[float]]
    baseline_activity: dict[str, dict[str, float]]
    num_queries: int
    num_queries_of_split: int
    unknown_items: int
    """Items of which the model knows nothing: in no ranking, as targets they count as missed."""
    unknown_queries: int
    """Queries of which it knows nothing: they are answered with what is most popular."""
    seconds: float = field(compare=False)
    widths: dict[int, dict[str, float]] = field(default_factory=dict)
    """`recall@k` and the other values by the first so many columns alone; {} where the model was
    not trained for them."""
    per_user: pa.Table | None = field(default=None, compare=False)
    """Recall and NDCG of each user asked, where they were asked for."""


def evaluate_model(
    model: TwoTower,
    dataset: Dataset,
    split: str,
    ranks: Ranks,
    ks: Sequence[int] = DEFAULT,
    users: int | None = None,
    history_length: int | None = None,
    baseline: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """`evaluate_split` of the model in training. Collective; the same on every rank."""
    encoder = Encoder(model, dataset, ranks, history_length)
    return evaluate_split(  # collective
        encoder, dataset, split, ks, users, baseline=baseline, on_progress=on_progress
    )


def evaluate_split(
    encoder: Encoder,
    dataset: Dataset,
    split: str,
    ks: Sequence[int],
    users: int | None = None,
    seed: int = 0,
    num_groups: int = 0,
    baseline: bool = False,
    how: Filter | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    per_user: bool = False,
    narrower: Sequence[int] = (),
) -> Evaluation:
    """`evaluate_asked` of a split: `Mistake` where it has no queries. Collective.

    Args:
        narrower: widths that are evaluated as well.
    """
    check_queries(dataset, split, users)
    ks = cut_offs(ks, dataset)
    asked = of_split(dataset, split, encoder.store.item_count_I, encoder.marks)
    whole = evaluate_asked(  # collective
        encoder, dataset, asked, ks, users, seed, num_groups, baseline, how, on_progress, per_user
    )
    if not narrower:
        return whole
    widths = {}
    try:
        for width in narrower:
            encoder.model.use_columns(width)
            found = evaluate_asked(  # collective
                encoder, dataset, asked, ks, users, seed, how=how, on_progress=on_progress
            )
            widths[width] = found.values
    finally:
        encoder.model.use_columns(None)
    return replace(whole, widths=widths)


def evaluate_asked(
    encoder: Encoder,
    dataset: Dataset,
    asked: Asked,
    ks: Sequence[int],
    users: int | None = None,
    seed: int = 0,
    num_groups: int = 0,
    baseline: bool = False,
    how: Filter | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    per_user: bool = False,
) -> Evaluation:
    """Evaluate queries on all ranks. Collective; every rank returns the same.

    Args:
        users: evaluate a random sample of this many users; None: all.
        num_groups: popularity groups reported; 0: none.
        baseline: evaluate the popularity ranking too.
        on_progress: told how many queries of how many are through, block by block.
        per_user: keep each user's recall and NDCG, on every rank.
    """
    started = time.perf_counter()
    population = asked.num_queries
    rows = sample_rows(population, users, seed)
    items = encoder.items(on_block=lambda: on_progress(0, len(rows)))  # collective
    device = encoder.ranks.device
    how = how or Filter.best_for(device)
    count_I = torch.from_numpy(asked.count_I).to(device)
    group_I = popularity_groups(count_I, num_groups).to(torch.uint8) if num_groups else None
    is_new_I = torch.from_numpy(asked.is_new_I).to(device) if num_groups else None
    ours = Tally(dataset, ks, device, group_I, num_groups, is_new_I, per_user)
    popular = Tally(dataset, ks, device, group_I, num_groups) if baseline else None
    by_popularity = PopularityRanking(count_I)
    assert items.unranked_X is not None
    unknown = torch.tensor([len(items.unranked_X), 0], device=device)
    done = 0
    for block in asked.read(rows, QUERIES_AT_ONCE[device.type]):
        own = own_share(block, encoder.ranks)
        query_qD = encoder.queries(  # collective
            own.user_Q, own.history, own.disliked, own.context
        )
        query_QD = share_queries(query_qD)  # collective
        seen = block.seen.padded(len(query_QD)).to(device)
        key_qK = merge_rankings(exact_topk(items, query_QD, seen, max(ks), how))  # collective
        item_qK = decode_keys(key_qK)[1]
        unknown_q = ~is_known(query_qD)
        unknown[1] += (unknown_q & (own.user_Q >= 0).to(device)).sum()
        if popular is not None or bool(unknown_q.any()):  # device-to-host sync
            popular_qK = by_popularity.topk(own.seen.to(device), max(ks))
            item_qK = torch.where(unknown_q.unsqueeze(1), popular_qK, item_qK)
            if popular is not None:
                popular.add(popular_qK, own)
        ours.add(item_qK, own)
        done += len(block)
        on_progress(done, len(rows))
    values = ours.values()  # collective
    beside = ({}, {}, {}) if popular is None else popular.all_values()  # collective
    dist.all_reduce(unknown)  # collective
    unknown_items, unknown_queries = unknown.tolist()  # device-to-host sync
    return Evaluation(
        values=values,
        user_intervals=ours.means.intervals(math.inf),
        intervals=ours.means.intervals(population) if len(rows) < population else {},
        groups=ours.group_values(),  # collective
        activity=ours.activity_values(),  # collective
        new_items=ours.new_values(),  # collective
        baseline=beside[0],
        baseline_groups=beside[1],
        baseline_activity=beside[2],
        num_queries=len(rows),
        num_queries_of_split=population,
        unknown_items=unknown_items,
        unknown_queries=unknown_queries,
        seconds=time.perf_counter() - started,
        per_user=ours.each.table() if ours.each is not None else None,  # collective
    )


def own_share(block: QueryBlock, ranks: Ranks) -> QueryBlock:
    """This rank's queries of a block padded so that every rank has as many."""
    each = -(-len(block) // ranks.world_size)
    padded = block.padded(each * ranks.world_size)
    return padded.slice(ranks.rank * each, (ranks.rank + 1) * each)
