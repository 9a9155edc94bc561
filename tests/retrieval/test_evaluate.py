"""Sharded evaluation against plain Python, on 1, 2 and 3 real ranks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.datasets import make_dataset
from tests.definitions import Query, queries_of
from tests.retrieval.ranks import run_on_ranks
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks
from trainer.model.build import build_model
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import Evaluation, evaluate_model, evaluate_split
from trainer.retrieval.queries import read_queries, sample_rows
from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.keys import decode_keys
from trainer.retrieval.search.merge import merge_rankings, share_queries
from trainer.retrieval.search.topk import exact_topk

pytestmark = pytest.mark.xdist_group("ranks")

KS = (1, 5, 20)


def small_config() -> Config:
    config = find_preset("ml-100k")
    return replace(config, model=replace(config.model, dim=16, output_dim=16, hidden=(16,)))


def evaluate_on(ranks: Ranks, data: str) -> dict[str, Any]:
    """What the tests compare: run on every rank."""
    dataset = Dataset.load(data)
    model = build_model(small_config(), dataset, ranks).eval().module
    encoder = Encoder(model, dataset, ranks)
    items = encoder.items()
    whole = evaluate_split(encoder, dataset, "test", KS, num_groups=3, baseline=True)
    sample = evaluate_split(encoder, dataset, "test", KS, users=30, seed=5)
    values = evaluate_model(model, dataset, "validation", ranks, ks=KS).values
    return {
        "whole": whole,
        "sample": sample,
        "values": values,
        "items": items.embedding_ID,
        "queries": _encode_all(encoder, dataset),
    }


def _encode_all(encoder: Encoder, dataset: Dataset) -> torch.Tensor:
    rows = sample_rows(dataset.splits["test"].queries, None, 0)
    (block,) = read_queries(dataset, "test", rows, 1000)
    return encoder.queries(block.user_Q, block.history, block.disliked)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data"
    make_dataset(path, users=80, items=61, rows=1500)
    return str(path)


@pytest.fixture(scope="module")
def results(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    return run_on_ranks(evaluate_on, (3, 2, 1), (data,), tmp_path_factory.mktemp("ranks"))


def flat(evaluation: Evaluation) -> dict[str, float]:
    groups = {f"{k}/{i}": x for k, v in evaluation.groups.items() for i, x in enumerate(v)}
    baseline = {f"baseline {k}": v for k, v in evaluation.baseline.items()}
    intervals = {f"interval {k}": v for k, v in evaluation.intervals.items()}
    return {**evaluation.values, **groups, **baseline, **intervals}


def test_every_rank_and_every_world_size_finds_the_same(results: dict[int, list[Any]]) -> None:
    expected = results[1][0]
    for ranks in results.values():
        for result in ranks:
            for name in ("whole", "sample"):
                assert flat(result[name]) == pytest.approx(flat(expected[name]), abs=1e-12)
            assert result["values"] == pytest.approx(expected["values"], abs=1e-12)
        items = torch.cat([result["items"] for result in ranks])
        torch.testing.assert_close(items, expected["items"], rtol=1e-5, atol=1e-7)


def reference_lists(data: str, result: dict[str, Any]) -> list[tuple[Query, list[int]]]:
    """(query, its whole ranking) by brute force."""
    rows = queries_of(Dataset.load(data), "test")
    score = result["queries"].double() @ result["items"].double().T
    ranked = []
    for row, scores in zip(rows, score.tolist(), strict=True):
        left = [item for item in range(len(scores)) if item not in set(row.seen)]
        ranked.append((row, sorted(left, key=lambda item: (-scores[item], item))))
    return ranked


def test_values_against_plain_python(data: str, results: dict[int, list[Any]]) -> None:
    found = results[1][0]["whole"]
    ranked = reference_lists(data, results[1][0])
    assert found.num_queries == len(ranked) == found.num_queries_of_split
    for k in KS:
        hits = [[i in row.targets for i in order[:k]] for row, order in ranked]
        targets = [len(row.targets) for row, _ in ranked]
        recall = [sum(h) / t for h, t in zip(hits, targets, strict=True)]
        gain = [sum(x / math.log2(r + 2) for r, x in enumerate(h)) for h in hits]
        ideal = [sum(1 / math.log2(r + 2) for r in range(min(k, t))) for t in targets]
        ndcg = [g / i for g, i in zip(gain, ideal, strict=True)]
        disliked = [sum(i in row.disliked_targets for i in order[:k]) / k for row, order in ranked]
        shown = {item for _, order in ranked for item in order[:k]}
        mean = {"recall": recall, "ndcg": ndcg, "disliked": disliked}
        for name, values in mean.items():
            assert found.values[f"{name}@{k}"] == pytest.approx(sum(values) / len(values))
        assert found.values[f"coverage@{k}"] == pytest.approx(len(shown) / 61)


def test_baseline_is_the_popularity_ranking(data: str, results: dict[int, list[Any]]) -> None:
    count = pq.read_table(f"{data}/items.parquet").column("count").to_pylist()
    order = sorted(range(61), key=lambda item: (-count[item], item))
    rows = queries_of(Dataset.load(data), "test")
    recall = []
    for row in rows:
        top = [item for item in order if item not in row.seen][:5]
        recall.append(len(set(top) & set(row.targets)) / len(row.targets))
    found = results[2][0]["whole"].baseline["recall@5"]
    assert found == pytest.approx(sum(recall) / len(recall))


def test_sample_has_an_interval_that_holds_the_whole(results: dict[int, list[Any]]) -> None:
    sample, whole = results[1][0]["sample"], results[1][0]["whole"]
    assert sample.num_queries == 30 and not whole.intervals
    off = abs(sample.values["recall@20"] - whole.values["recall@20"])
    assert 0 < off < 2 * sample.intervals["recall@20"]


def merged_topk(ranks: Ranks) -> torch.Tensor:
    """Each rank's own queries' rankings of items that are spread over the ranks."""
    torch.manual_seed(9)
    item, query = torch.randint(-2, 3, (1001, 4)).float(), torch.randint(-2, 3, (12, 4)).float()
    each = -(-1001 // ranks.world_size)
    first = ranks.rank * each
    own = query.chunk(ranks.world_size)[ranks.rank]
    everybody = share_queries(own)
    assert torch.equal(everybody, query)
    rows = ItemRows(item[first : first + each], first)
    return merge_rankings(exact_topk(rows, everybody, None, 40))


def test_rankings_merge_to_the_bit_on_any_number_of_ranks(tmp_path: Path) -> None:
    results = run_on_ranks(merged_topk, (3, 2, 1), (), tmp_path)
    for ranks in results.values():
        assert torch.equal(torch.cat(ranks), results[1][0])
    score, _ = decode_keys(results[1][0])
    assert bool((score[:, :-1] >= score[:, 1:]).all())


def test_bad_arguments_name_value_limit_and_remedy(data: str, tmp_path: Path) -> None:
    dataset = Dataset.load(data)

    def evaluate(ks: tuple[int, ...] = KS, users: int | None = None) -> None:
        evaluate_split(None, dataset, "test", ks, users)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="k is 10, 62; cut-offs are at least 1 and at most 61"):
        evaluate(ks=(10, 62))
    with pytest.raises(ValueError, match="users is 1; a sample has at least 2"):
        evaluate(users=1)
