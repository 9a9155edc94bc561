"""`tandem evaluate` against a few lines of numpy over the exported embeddings."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.datasets import make_dataset
from tests.test_training import small_config
from trainer.progress import SilentProgress
from trainer.retrieval.arguments import EvaluateArguments, ExportArguments
from trainer.retrieval.evaluate_run import evaluate
from trainer.retrieval.export import export
from trainer.run import RunSpec
from trainer.train import run_worker


def embeddings(folder: Path) -> np.ndarray:
    parts = [pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))]
    return np.concatenate([np.stack(part["embedding"].to_numpy()) for part in parts])


def by_hand(users: np.ndarray, items: np.ndarray, queries: Path, k: int) -> tuple[float, float]:
    """Mean recall@k and ndcg@k of the users with targets, seen items left out."""
    recalls, ndcgs = [], []
    for row in pq.read_table(queries).to_pylist():
        scores = items @ users[row["user"]]
        scores[row["seen"]] = -np.inf
        hits = np.isin(np.argsort(-scores, kind="stable")[:k], row["targets"])
        discounts = 1 / np.log2(np.arange(k) + 2)
        recalls.append(hits.sum() / len(row["targets"]))
        ndcgs.append((hits * discounts).sum() / discounts[: len(row["targets"])].sum())
    return float(np.mean(recalls)), float(np.mean(ndcgs))


@pytest.mark.parametrize("tower", ["mf", "graph"])
def test_evaluate_equals_numpy_over_exported_embeddings(tower: str, tmp_path: Path) -> None:
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    make_dataset(data, users=60, items=50, rows=900)
    plain = {"use_history": False, "user_attributes": False, "item_attributes": False}
    config = small_config(model={**plain, "tower": tower}, training={"max_steps": 6})
    run_worker(RunSpec("ml-100k", config, str(data), str(run)), SilentProgress())
    found = evaluate(EvaluateArguments(str(run), split="test", k=(10,)))
    export(ExportArguments(str(run), str(out)))
    users, items = embeddings(out / "users"), embeddings(out / "items")
    recall, ndcg = by_hand(users, items, data / "queries/test.parquet", 10)
    assert found["recall@10"] == pytest.approx(recall, abs=1e-6)
    assert found["ndcg@10"] == pytest.approx(ndcg, abs=1e-6)
