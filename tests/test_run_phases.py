"""What a run is at is told while it is at it: to the launcher, and in the run's folder."""

import html
import json
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from cluster.jobs.submit import status
from tests.datasets import make_dataset
from tests.test_training import small_config
from trainer.base.mistake import Mistake
from trainer.distributed.hooks import Hooks
from trainer.files import signs
from trainer.files.json_files import write_json
from trainer.launch.here import Here
from trainer.launch.launcher import Worker
from trainer.live.runs import read_run
from trainer.observe.progress import SilentProgress
from trainer.report.report import report_html
from trainer.retrieval import evaluate
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.lock import RunLock, write_owner
from trainer.run.outside import Outside
from trainer.run.state import read_state
from trainer.train import resumable, run_worker, train_on_rank


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
    assert set(order[3:]) <= {"checkpointing", "finished"}
    evaluating = [(done, total) for phase, done, total in told if phase == "evaluating"]
    queries = evaluating[-1][1]
    assert queries is not None and 32 < queries < 64
    assert evaluating == [(0, queries), (32, queries), (queries, queries)]
    steps = [(done, total) for phase, done, total in told if phase == "training"]
    assert steps == [(step, len(steps)) for step in range(1, len(steps) + 1)]


def test_the_folder_says_what_its_run_is_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "RENEW_SECONDS", 600.0)  # that it has started is said at once
    config = {"run_id": "", "preset": "demo", "data": "", "dataset_digest": "", "world_size": 1}
    write_json(tmp_path / "config.json", {**config, "versions": {}, "config": {}})
    write_json(tmp_path / "summary.json", {"phase": "finished", "steps": 40})
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        stream.write(json.dumps({"step": 40, "total_steps": 90}) + "\n")
    held = RunLock(tmp_path)
    held.take("ours")
    held.note_phase("evaluating", 3072, 94654)
    until = time.monotonic() + 60
    while (owner := read_state(tmp_path).owner) is None or owner.phase != "evaluating":
        assert time.monotonic() < until
    state = read_state(tmp_path)
    assert (
        state.is_alive
        and state.phase == "evaluating"
        and (owner.done, owner.total) == (3072, 94654)
    )
    assert "evaluating 3,072 of 94,654 (3 %) on " in state.describe()
    held.release()
    assert RunFolder(tmp_path).last_metrics()["step"] == 40
    state = read_state(tmp_path)
    assert state.phase == "finished" and state.owner is None


def failing(given: tuple[RunSpec, str], worker: Worker) -> dict[str, object]:
    """Trains, and meets something at step 3."""
    spec, how = given

    def meet(step: int) -> None:
        if step == 3:
            raise (
                Mistake("--out is full: free some space") if how == "mistake" else KeyError("rows")
            )

    return run_worker(spec, SilentProgress(), Hooks(on_step=meet))


@pytest.mark.parametrize(
    ("how", "cause"),
    [("mistake", "--out is full: free some space"), ("bug", "unexpected KeyError: 'rows' (")],
)
def test_a_run_that_failed_says_why_to_all_who_ask(
    how: str, cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "data", users=60, items=40, rows=700)
    out = tmp_path / "run"
    spec = RunSpec("ml-100k", small_config(), str(tmp_path / "data"), str(out))
    with pytest.raises((Mistake, KeyError)):
        Here().run(failing, (spec, how), resumable(spec))
    state = read_state(out)
    assert (state.phase, state.is_alive, state.step) == ("failed", False, 2)
    assert state.cause is not None and state.cause.startswith(cause) and "\n" not in state.cause
    assert state.describe() == (
        f"{out}: failed, step 2 of {state.total_steps}, no checkpoint yet: {state.cause}"
    )
    assert status([str(out)]) == 1 and cause in capsys.readouterr().out
    shown = read_run(out)
    assert (shown["now"]["phase"], shown["now"]["cause"]) == ("failed", state.cause)
    assert f"failed: {html.escape(cause)}" in report_html([{**shown, "norms": "", "dataset": None}])
    resumed = replace(spec, resume=True, run_id="another")
    Here(SilentProgress()).run(train_on_rank, resumed, resumable(resumed))
    assert read_state(out).phase == "finished" and read_state(out).cause is None


def test_a_start_that_never_was_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    """It met the folder of another run: that one has not failed."""
    make_dataset(tmp_path / "data", users=60, items=40, rows=700)
    first = RunSpec("ml-100k", small_config(), str(tmp_path / "data"), str(tmp_path / "run"))
    Here(SilentProgress()).run(train_on_rank, first, resumable(first))
    second = replace(first, run_id="another")
    with pytest.raises(Mistake, match="exists already"):
        Here(SilentProgress()).run(train_on_rank, second, resumable(second))
    assert read_state(first.out).phase == "finished"


def test_a_driver_that_waits_for_room_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"run_id": "ours", "preset": "demo", "data": "", "dataset_digest": "", "world_size": 1}
    ours, theirs = Outside(str(tmp_path), "ours"), Outside(str(tmp_path), "theirs")
    for outside in (ours, theirs):  # no run yet
        outside.waiting()
        outside.failed("no room")
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "config.json", {**config, "versions": {}, "config": {}})
    ours = Outside(str(tmp_path), "ours")
    theirs.waiting()
    assert read_state(tmp_path).phase == "stopped"
    ours.waiting()
    assert read_state(tmp_path).phase == "waiting" and read_state(tmp_path).is_alive
    held = RunLock(tmp_path)
    held.take("ours")  # there is room again: rank 0 of the same start
    assert read_state(tmp_path).phase == "starting"
    held.release()
    ours = Outside(str(tmp_path), "ours")
    ours.waiting()
    ours.failed("no room for 2 workers in 600 s")
    state = read_state(tmp_path)
    assert (state.phase, state.cause) == ("failed", "no room for 2 workers in 600 s")
    (tmp_path / "summary.json").unlink()
    write_owner(tmp_path, "ours", "rank 0's", "training", 3, 9)  # and then it was killed
    assert read_state(tmp_path).is_alive
    ours.failed("rank 0: worker process died")
    assert read_state(tmp_path).phase == "failed"
    write_owner(tmp_path, "theirs", "rank 0's", "training", 3, 9)
    ours.failed("too late")
    assert read_state(tmp_path).phase == "training"
    (tmp_path / "owner.json").unlink()
    monkeypatch.setattr(signs, "SILENT_SECONDS", 0.0)  # a driver that was killed while it waited
    (tmp_path / "summary.json").unlink()
    ours = Outside(str(tmp_path), "ours")
    ours.waiting()
    assert read_state(tmp_path).phase == "stopped"
