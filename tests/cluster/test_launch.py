"""`tandem train` on a Ray cluster of its own: it trains, and says little but what matters."""

import os
from pathlib import Path

import pytest

from tests.cluster.runs import TrainRun
from tests.datasets import make_dataset
from tests.strangers import fill_with_strangers


@pytest.mark.timeout(300)
def test_two_workers_train_and_ray_stays_quiet(tmp_path: Path) -> None:
    """In a folder, and with a path, full of modules that have our packages' names."""
    make_dataset(tmp_path / "data")
    here, on_the_path = tmp_path / "project", tmp_path / "installed"
    for folder in (here, on_the_path):
        fill_with_strangers(folder)
    path = os.pathsep.join([str(on_the_path), os.environ.get("PYTHONPATH", "")])
    with TrainRun(
        tmp_path / "data",
        tmp_path / "run",
        "--training.max-steps=6",
        cwd=here,
        environment={"PYTHONPATH": path},
    ) as run:
        assert run.finish() == 0, run.text
    waits = ("loading torch and Ray", "starting Ray on this machine", "starting: ")
    assert run.lines[0] == waits[0]
    told = [line for line in run.lines if not line.startswith(waits)]
    first, second, data, model, loss, *steps, took, blind, evaluate, recommend, report, last = told
    assert first.startswith("metrics: http://127.0.0.1:")
    assert second.startswith("starting workers (2), which takes up to a minute")
    assert [line.split()[0] for line in (data, model, loss)] == ["data", "model", "loss"]
    assert all(line.startswith("training  ") for line in steps), run.text
    assert steps[-1].startswith("training  6/6  loss ")
    assert evaluate.startswith("next: tandem evaluate ") and "tandem report " in report
    assert " --user " in recommend and last == f"the run: {tmp_path / 'run'}"
    assert blind.startswith("items are known by their ids alone: new ones are in no list")
    assert took.startswith("trained 6 steps with 2 workers in ") and " training" in took
    assert list(run.losses()) == [1, 2, 3, 4, 5, 6]
