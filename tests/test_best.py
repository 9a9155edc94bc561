"""The best checkpoint on validation is kept and opened, with the towers' average."""

import gc
import json
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
        values = evaluate_model(trained.model, trained.dataset, "validation", ranks, ks=(20,))
        del trained
        gc.collect()
    assert values["ndcg@20"] == pytest.approx(best["ndcg@20"], rel=1e-6)
    assert len(list((run / "checkpoints").glob("step-*"))) == 2
