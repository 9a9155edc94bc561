"""`tandem evaluate` against a few lines of numpy over the exported embeddings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import make_dataset
from tests.definitions import Query, queries_of
from tests.test_training import small_config
from trainer.observe.progress import SilentProgress
from trainer.retrieval.arguments import EvaluateArguments, ExportArguments
from trainer.retrieval.evaluate_run import evaluate
from trainer.retrieval.export import export
from trainer.run.folder import RunSpec
from trainer.train import run_worker


def embeddings(folder: Path) -> np.ndarray:
    vectors: np.ndarray = np.load(folder / "vectors.npy")
    return vectors


def by_hand(
    users: np.ndarray, items: np.ndarray, queries: list[Query], k: int
) -> tuple[float, float]:
    """Mean recall@k and ndcg@k of the users with targets, seen items left out."""
    recalls, ndcgs = [], []
    for row in queries:
        scores = items @ users[row.user]
        scores[list(row.seen)] = -np.inf
        hits = np.isin(np.argsort(-scores, kind="stable")[:k], row.targets)
        discounts = 1 / np.log2(np.arange(k) + 2)
        recalls.append(hits.sum() / len(row.targets))
        ndcgs.append((hits * discounts).sum() / discounts[: len(row.targets)].sum())
    return float(np.mean(recalls)), float(np.mean(ndcgs))


def users_at(queries: list[Query], encoder: Path) -> np.ndarray:
    """Embeddings of the users as they stood before the split, by the exported query program.

    The exported users know all of their items, those of the test as well: not what is evaluated.
    """
    ids = {"user": [[row.user] for row in queries]}
    for place in range(3):
        ids[f"history@{place}"] = [
            list(row.history[-1 - place :][:1]) if place < len(row.history) else [-1]
            for row in queries
        ]
    program = torch.export.load(encoder).module()
    found = program({key: torch.tensor(value) for key, value in ids.items()}).detach().numpy()
    embeddings = np.zeros((max(row.user for row in queries) + 1, found.shape[1]), np.float32)
    embeddings[[row.user for row in queries]] = found
    return embeddings


@pytest.mark.parametrize("tower", ["mf", "history"])
def test_evaluate_equals_numpy_over_exported_embeddings(tower: str, tmp_path: Path) -> None:
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    dataset = make_dataset(data, users=60, items=50, rows=900)
    model = {
        "tower": tower,
        "use_history": False,
        "user_attributes": False,
        "item_attributes": False,
        "history_pooling": "places",
        "sequence_length": 3,
    }
    config = small_config(model=model, training={"max_steps": 6})
    run_worker(RunSpec("ml-100k", config, str(data), str(run)), SilentProgress())
    found = evaluate(EvaluateArguments(str(run), split="test", k=(10,)))
    export(ExportArguments(str(run), str(out)))
    users, items = embeddings(out / "users"), embeddings(out / "items")
    queries = queries_of(dataset, "test")
    if tower == "history":
        users = users_at(queries, out / "query_encoder.pt2")
    recall, ndcg = by_hand(users, items, queries, 10)
    assert found["recall@10"] == pytest.approx(recall, abs=1e-6)
    assert found["ndcg@10"] == pytest.approx(ndcg, abs=1e-6)
