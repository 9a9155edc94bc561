"""`tandem train` on a Ray cluster of its own: it trains, and says little but what matters."""

from pathlib import Path

import pytest

from tests.cluster.runs import TrainRun
from tests.datasets import make_dataset


@pytest.mark.timeout(300)
def test_two_workers_train_and_ray_stays_quiet(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    with TrainRun(tmp_path / "data", tmp_path / "run", "--training.max-steps=6") as run:
        assert run.finish() == 0, run.text
    first, second, *steps, last = run.lines
    assert first.startswith("metrics: http://127.0.0.1:")
    assert second == "starting workers (2), which takes up to a minute"
    assert all(line.startswith("training  ") for line in steps), run.text
    assert steps[-1].startswith("training  6/6  loss ")
    assert last.startswith("trained 6 steps with 2 workers in ")
    assert list(run.losses()) == [1, 2, 3, 4, 5, 6]
