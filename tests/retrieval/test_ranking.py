"""Measures by hand-worked numbers, and against plain Python on random lists."""

import math

import pytest
import torch

from trainer.retrieval.measures.popularity import PopularityRanking, popularity_groups
from trainer.retrieval.measures.ranking import disliked_metrics, gini, is_member, ranking_metrics
from trainer.retrieval.search.item_lists import ItemLists


def test_measures_by_hand() -> None:
    # Hits at ranks 2 and 4 of 5, three targets:
    #   recall@2 = 1/3, recall@5 = 2/3; hit@1 = 0; mrr@5 = 1/2; map@5 = (1/2 + 2/4) / 3 = 1/3
    #   dcg = 1/log2(3) + 1/log2(5) = .63093 + .43068 = 1.06161
    #   ideal of three = 1 + .63093 + .5 = 2.13093; ndcg@5 = .49819
    item = torch.tensor([[10, 11, 12, 13, 14]])
    hit = is_member(item, ItemLists.from_lists([[11, 13, 99]]))
    assert hit.tolist() == [[False, True, False, True, False]]
    values = ranking_metrics(hit, torch.tensor([3]), ks=(1, 2, 5))
    assert values["recall@2"].item() == pytest.approx(1 / 3)
    assert values["recall@5"].item() == pytest.approx(2 / 3)
    assert values["hit@1"].item() == 0 and values["hit@2"].item() == 1
    assert values["mrr@1"].item() == 0 and values["mrr@5"].item() == 0.5
    assert values["map@5"].item() == pytest.approx(1 / 3)
    assert values["ndcg@5"].item() == pytest.approx(0.49819, abs=1e-5)
    assert values["ndcg@1"].item() == 0
    # At k = 2 the ideal has two hits: 1 + .63093.
    assert values["ndcg@2"].item() == pytest.approx(0.63093 / 1.63093, abs=1e-5)


def plain(item: list[int], targets: set[int], k: int) -> dict[str, float]:
    hits = [item[rank] in targets for rank in range(k)]
    gain = sum(1 / math.log2(rank + 2) for rank in range(k) if hits[rank])
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(targets))))
    precision = sum(sum(hits[: rank + 1]) / (rank + 1) for rank in range(k) if hits[rank])
    return {
        f"recall@{k}": sum(hits) / len(targets),
        f"ndcg@{k}": gain / ideal,
        f"hit@{k}": float(any(hits)),
        f"mrr@{k}": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        f"map@{k}": precision / min(k, len(targets)),
    }


def test_measures_against_plain_python() -> None:
    generator = torch.Generator().manual_seed(1)
    item = torch.stack([torch.randperm(60, generator=generator)[:20] for _ in range(50)])
    item[3, 10:] = -1  # a list that ran out of items
    sizes = torch.randint(1, 30, (50,), generator=generator).tolist()
    targets = [torch.randperm(60, generator=generator)[:size].tolist() for size in sizes]
    lists = ItemLists.from_lists(targets)
    values = ranking_metrics(is_member(item, lists), lists.lengths, ks=(1, 7, 20))
    for query in range(50):
        for k in (1, 7, 20):
            for name, value in plain(item[query].tolist(), set(targets[query]), k).items():
                assert values[name][query].item() == pytest.approx(value), (query, name)


def test_disliked_share_counts_slots() -> None:
    values = disliked_metrics(
        torch.tensor([[1, 2, 3, 4]]), ItemLists.from_lists([[2, 4, 9]]), (2, 4)
    )
    assert values["disliked@2"].item() == 0.5 and values["disliked@4"].item() == 0.5


def test_gini_by_hand() -> None:
    assert gini(torch.tensor([3, 3, 3, 3])) == pytest.approx(0)
    assert gini(torch.tensor([0, 0, 0, 8])) == pytest.approx(0.75)
    # Sorted 1, 3: 2 * (1*1 + 2*3) / (2 * 4) - 3/2 = .25
    assert gini(torch.tensor([3, 1])) == pytest.approx(0.25)
    assert gini(torch.zeros(4)) == 0


def test_popularity_leaves_out_what_was_seen() -> None:
    count = torch.tensor([5, 9, 9, 1, 0, 7])  # by count: 1, 2, 5, 0, 3; nobody took 4
    ranking = PopularityRanking(count)
    seen = ItemLists.from_lists([[], [1, 5], [0, 1, 2, 3, 5]])
    assert ranking.topk(seen, 3).tolist() == [[1, 2, 5], [2, 0, 3], [-1, -1, -1]]


def test_popularity_against_plain_python_with_heavy_users() -> None:
    generator = torch.Generator().manual_seed(2)
    count = torch.randint(0, 40, (500,), generator=generator)
    order = sorted(range(500), key=lambda row: (-int(count[row]), row))
    seen = [sorted(order[: 30 * query]) for query in range(16)]  # the last saw 450 of the top
    found = PopularityRanking(count).topk(ItemLists.from_lists(seen), 5)
    for query in range(16):
        taken = set(seen[query])
        assert found[query].tolist() == [row for row in order if row not in taken][:5]


def test_groups_share_interactions() -> None:
    count = torch.tensor([100, 0, 50, 50, 10, 0, 90, 100])
    group = popularity_groups(count, 4)
    shares = torch.zeros(4).index_add_(0, group, count.float())
    assert shares.tolist() == [110.0, 90.0, 100.0, 100.0]
    assert group[1] == 0 and group[0] >= group[6]
