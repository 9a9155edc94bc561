"""What a run is at is told while it is at it: to the launcher, and in the run's folder."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.test_training import small_config
from trainer.distributed.hooks import Hooks
from trainer.files.json_files import write_json
from trainer.observe.progress import SilentProgress
from trainer.retrieval import evaluate
from trainer.run import lock
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.lock import RunLock
from trainer.run.state import read_state
from trainer.train import run_worker


def test_phases_are_told_in_order_with_their_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation of hours is no hang: every block of queries is a sign of life."""
    monkeypatch.setattr(evaluate, "QUERIES_AT_ONCE", {"cpu": 32})
    make_dataset(tmp_path / "data", users=60, items=40, rows=700)
    config = small_config(training={"epochs": 1}, evaluation={"every_epochs": 1, "k": (20,)})
    told: list[tuple[str, int, int | None]] = []
    hooks = Hooks(on_phase=lambda *phase: told.append(phase))
    spec = RunSpec("ml-100k", config, str(tmp_path / "data"), str(tmp_path / "run"))
    run_worker(spec, SilentProgress(), hooks)
    order = [phase for phase, _ in groupby(phase for phase, _, _ in told)]
    assert order[:3] == ["starting", "training", "evaluating"]
    assert set(order[3:]) <= {"saving"}
    evaluating = [(done, total) for phase, done, total in told if phase == "evaluating"]
    queries = evaluating[-1][1]
    assert queries is not None and 32 < queries < 64
    assert evaluating == [(0, queries), (32, queries), (queries, queries)]
    steps = [(done, total) for phase, done, total in told if phase == "training"]
    assert steps == [(step, len(steps)) for step in range(1, len(steps) + 1)]


def test_the_folder_says_what_its_run_is_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    config = {"run_id": "", "preset": "demo", "data": "", "dataset_digest": "", "world_size": 1}
    write_json(tmp_path / "config.json", {**config, "versions": {}, "config": {}})
    write_json(tmp_path / "summary.json", {"stopped_on_request": False, "steps": 40})
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        stream.write(json.dumps({"step": 40, "total_steps": 90}) + "\n")
    held = RunLock(tmp_path)
    held.take("ours")
    held.note_phase("evaluating", 3072, 94654)
    while (owner := read_state(tmp_path).owner) is None or owner.phase != "evaluating":
        pass
    state = read_state(tmp_path)
    assert state.state == "running" and (owner.done, owner.total) == (3072, 94654)
    assert "step 40 of 90, evaluating 3,072 of 94,654" in state.describe()
    held.release()
    assert RunFolder(tmp_path).last_metrics()["step"] == 40
    state = read_state(tmp_path)
    assert state.state == "finished" and state.owner is None
