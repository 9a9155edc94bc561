"""Faults on real Ray clusters: nothing is lost, the cause is named, the curve stays what it was."""

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.nodes import Cluster
from tests.cluster.runs import TrainRun
from tests.datasets import make_dataset

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
LONG = ("--training.epochs=25", "--checkpoint.every-steps=40", "--step-timeout=30")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "data"
    make_dataset(path)
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by step of the run to which nothing happens."""
    with TrainRun(data, tmp_path_factory.mktemp("whole") / "run", *LONG) as run:
        assert run.finish() == 0, run.text
    return run.losses()


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (signal.SIGKILL, "worker process died"),
        (signal.SIGSTOP, "has not answered for"),
    ],
)
def test_a_killed_or_hung_rank(
    data: Path, tmp_path: Path, whole: dict[int, float], fault: signal.Signals, cause: str
) -> None:
    with TrainRun(data, tmp_path / "run", *LONG) as run:
        run.wait_for_checkpoint()
        os.kill(run.worker_pids()[-1], fault)
        assert run.finish() == 0, run.text
    assert cause in run.text
    assert "restarting from the last checkpoint (2 restarts left)" in run.text
    assert run.losses() == whole


def test_restarts_are_counted_and_limited(data: Path, tmp_path: Path) -> None:
    with TrainRun(data, tmp_path / "run", *LONG, "--max-failures=0") as run:
        run.wait_for_checkpoint()
        os.kill(run.worker_pids()[0], signal.SIGKILL)
        assert run.finish() == 1
    assert run.lines[-1].startswith("error: rank 0: worker process died"), run.text
    assert "restarting" not in run.text


def test_sigterm_writes_a_checkpoint_and_resuming_goes_on(
    data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    with TrainRun(data, tmp_path / "run", *LONG) as run:
        run.wait_for_checkpoint()
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 143, run.text
    assert "stopped on SIGTERM after step" in run.lines[-1]
    assert run.checkpoints()[-1] == max(run.losses())
    with TrainRun(data, tmp_path / "run", *LONG, "--resume") as again:
        assert again.finish() == 0, again.text
    assert again.losses() == whole


def test_a_node_is_killed_and_another_comes(
    data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    with Cluster(tmp_path / "ray") as cluster:
        cluster.add_node()
        lost = cluster.add_node()
        flags = (f"--address={cluster.address}", "--resize-every=2", "--patience=120")
        with TrainRun(data, tmp_path / "run", *LONG, *flags, workers="1..2") as run:
            run.wait_for_checkpoint()
            lost.kill()
            run.wait_for_text("restarting from the last checkpoint")
            run.wait_for_checkpoint(after_step=max(run.checkpoints()))
            cluster.add_node()
            run.wait_for_text("growing from 1 workers")
            assert run.finish() == 0, run.text
        assert "with 2 workers" in run.lines[-1]
    assert run.losses().keys() == whole.keys()
    for step, loss in run.losses().items():
        # The same global batches; sums over ranks are added in another order.
        assert loss == pytest.approx(whole[step], rel=1e-3), step
