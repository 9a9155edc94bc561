"""The best checkpoint on validation is kept and opened, with the towers' average."""

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.test_training import small_config
from trainer.distributed.ranks import process_group
from trainer.model.trained import load_run
from trainer.observe.progress import SilentProgress
from trainer.retrieval.evaluate import evaluate_model
from trainer.run.folder import RunSpec
from trainer.train import run_worker


def test_the_best_checkpoint_is_kept_and_evaluates_as_it_did_in_training(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    make_dataset(data, users=80, items=60, rows=900)
    config = small_config(
        optimizer={"tower_averaging": 0.9, "table_learning_rate": 1.0, "schedule": "constant"},
        evaluation={"every_epochs": 1, "patience": 2, "metric": "ndcg@20", "k": (20,)},
        training={"epochs": 12},
        checkpoint={"keep": 1},
    )
    run_worker(RunSpec("ml-100k", config, str(data), str(run)), SilentProgress())
    lines = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["ndcg@20"])
    assert lines[-1]["step"] > best["step"], "stopped only after it got no better"
    with process_group() as ranks:
        trained = load_run(run, ranks)
        assert trained.step == best["step"]
        values = evaluate_model(
            trained.model, trained.dataset, "validation", ranks, ks=(20,)
        ).values
        del trained
        gc.collect()
    assert values["ndcg@20"] == pytest.approx(best["ndcg@20"], rel=1e-6)
    assert len(list((run / "checkpoints").glob("step-*"))) == 2


def test_what_was_best_on_other_data_is_not_best_on_these(tmp_path: Path) -> None:
    """A run that goes on with data that grew kept the epoch that was best on the old rows."""
    run = tmp_path / "run"
    old = make_dataset(tmp_path / "old", users=80, items=60, rows=900, planted=1.0)
    grown = make_dataset(tmp_path / "grown", users=80, items=60, rows=900, planted=0.0, seed=1)
    grown = replace(grown, parent_digest=old.digest)
    (tmp_path / "grown/dataset.json").write_text(grown.to_json())
    config = small_config(
        evaluation={"every_epochs": 1, "patience": 9, "metric": "ndcg@20", "k": (20,)},
        training={"epochs": 3},
    )
    run_worker(RunSpec("ml-100k", config, old.path, str(run)), SilentProgress())
    run_worker(RunSpec("ml-100k", config, grown.path, str(run), resume=True), SilentProgress())
    lines = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert max(lines[:3], key=lambda line: line["ndcg@20"])["ndcg@20"] > lines[-1]["ndcg@20"]
    with process_group() as ranks:
        trained = load_run(run, ranks, grown.path)
        assert trained.step == max(lines[3:], key=lambda line: line["ndcg@20"])["step"]
        del trained
        gc.collect()
