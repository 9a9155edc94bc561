"""`tandem train` on a real Ray cluster of its own: it trains, and a killed rank is restarted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.datasets import make_dataset

SMALL = (
    "--model.dim=8",
    "--model.output-dim=8",
    "--model.hidden=8",
    "--training.global-batch-size=128",
    "--training.log-every-steps=1",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("launch") / "data"
    make_dataset(path)
    return path


def start(data: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.cli", "train", "demo", f"--data={data}"]
    return subprocess.Popen(
        [*command, f"--out={out}", "--workers=2", "--discovery-port=0", *SMALL, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(run: Path) -> dict[int, float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def workers_of(run: Path) -> list[int]:
    """Pids of the Ray workers of the run, told apart by the driver they descend from."""
    found = subprocess.run(["pgrep", "-f", "ray::RayTrainWorker"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not list(run.glob("checkpoints/step-*/checkpoint.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.1)


@pytest.mark.timeout(300)
def test_two_workers_train_and_ray_stays_quiet(data: Path, tmp_path: Path) -> None:
    process = start(data, tmp_path / "run", "--training.max-steps=6")
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert out.startswith("trained 6 steps with 2 workers in ")
    assert out.count("\n") == 1
    told = error.splitlines()
    assert told[0].startswith("metrics: http://127.0.0.1:")
    assert told[-1].startswith("training  6/6  loss ")
    assert all(line.startswith(("metrics: ", "training  ")) for line in told), error
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.faults
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_hung_rank_leaves_the_curve_as_it_was(
    data: Path, tmp_path: Path, fault: signal.Signals
) -> None:
    flags = ("--training.epochs=60", "--checkpoint.every-steps=50", "--step-timeout=20")
    whole = start(data, tmp_path / "whole", *flags)
    assert whole.wait() == 0, whole.communicate()
    process = start(data, tmp_path / "hurt", *flags)
    wait_for_checkpoint(tmp_path / "hurt", process)
    os.kill(workers_of(tmp_path / "hurt")[-1], fault)
    _, error = process.communicate()
    assert process.returncode == 0, error
    cause = "worker process died" if fault == signal.SIGKILL else "has not answered for"
    assert cause in error
    assert "restarting from the last checkpoint (2 restarts left)" in error
    assert losses(tmp_path / "hurt") == losses(tmp_path / "whole")
