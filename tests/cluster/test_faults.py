"""Faults on real Ray clusters: nothing is lost, the cause is named, the curve stays what it was."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.namespaces import Network, need_namespaces
from tests.cluster.nodes import Cluster, Node, descendants
from tests.cluster.runs import SMALL, WAIT_SECONDS, TrainRun, read_losses, workers_below
from tests.datasets import make_dataset

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
LONG = ("--training.epochs=25", "--checkpoint.every-steps=40", "--step-timeout=60")


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


def test_the_only_rank_that_hangs_is_ended(
    data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    """Nobody else beats, and it hears no verdict: it is killed on its node."""
    with TrainRun(data, tmp_path / "run", *LONG, workers="1") as run:
        run.wait_for_checkpoint()
        (hung,) = run.worker_pids()
        os.kill(hung, signal.SIGSTOP)
        assert run.finish() == 0, run.text
    assert re.search(rf"failed: rank 0 .*{hung}.* has not answered for \d+ s", run.text), run.text
    assert "restarting from the last checkpoint (2 restarts left)" in run.text
    assert_same_curve(run.losses(), whole)


def test_restarts_are_counted_and_limited(data: Path, tmp_path: Path) -> None:
    with TrainRun(data, tmp_path / "run", *LONG, "--max-failures=0") as run:
        run.wait_for_checkpoint()
        os.kill(run.worker_pids()[0], signal.SIGKILL)
        assert run.finish() == 1
    assert run.lines[-1].startswith("error: rank 0: worker process died"), run.text
    assert "restarting" not in run.text


@pytest.mark.parametrize(
    ("number", "name", "status"),
    [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)],
)
def test_a_signal_writes_a_checkpoint_and_resuming_goes_on(
    data: Path, tmp_path: Path, whole: dict[int, float], number: int, name: str, status: int
) -> None:
    with TrainRun(data, tmp_path / "run", *LONG) as run:
        run.wait_for_checkpoint()
        run.process.send_signal(number)
        assert run.finish() == status, run.text
    assert f"stopped on {name} after step" in run.lines[-1]
    assert run.checkpoints()[-1] == max(run.losses())
    with TrainRun(data, tmp_path / "run", *LONG, "--resume") as again:
        assert again.finish() == 0, again.text
    assert again.losses() == whole


def test_waiting_for_room_is_told_and_can_be_ended(data: Path, tmp_path: Path) -> None:
    """A fixed number of workers on a cluster that others use."""
    with Cluster() as cluster:
        cluster.add_node(cpus=2)
        cluster.wait_for_cpus(2)
        at = f"--address={cluster.address}"
        endless = ("--training.epochs=100000", at)
        with TrainRun(data, tmp_path / "first", *endless) as first:
            first.wait_for_step(1)
            with TrainRun(data, tmp_path / "second", *LONG, at) as second:
                second.wait_for_text("waiting for 2 workers: 0 CPUs are free")
                second.process.send_signal(signal.SIGINT)
                assert second.finish() == 130, second.text
            assert "stopped on Ctrl-C while waiting for 2 workers" in second.lines[-1]
            assert not second.out.exists()


def test_an_autoscaler_is_asked_for_what_is_missing(data: Path, tmp_path: Path) -> None:
    """A cluster of a head alone: the first worker is waited for, the second grown to."""
    with Cluster(most_nodes=2) as cluster:
        at = (f"--address={cluster.address}", "--resize-every=2")
        with TrainRun(data, tmp_path / "run", *LONG, *at, workers="1..2") as run:
            assert run.finish() == 0, run.text
        starts = [json.loads(line) for line in (run.out / "starts.jsonl").read_text().splitlines()]
        assert starts[-1]["world_size"] == 2, run.text
        cluster.wait_until_nothing_is_asked_of_the_autoscaler()


def test_a_head_that_dies_is_one_line(data: Path, tmp_path: Path) -> None:
    with Cluster() as cluster:
        cluster.add_node(cpus=2)
        cluster.wait_for_cpus(2)
        flags = (f"--address={cluster.address}", "--training.epochs=100000", "--patience=30")
        with TrainRun(data, tmp_path / "run", *flags) as run:
            run.wait_for_step(5)
            cluster.head.kill()
            assert run.finish() != 0, run.text
        assert "Traceback" not in run.text
        assert len([line for line in run.lines if not line.startswith("training")]) < 12, run.text


def test_sigterm_of_a_worker_costs_no_step(
    data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    """Schedulers that send SIGTERM to all processes of a job: a checkpoint of that very step."""
    with TrainRun(data, tmp_path / "run", *LONG, "--checkpoint.every-steps=1000") as run:
        run.wait_for_step(40)
        os.kill(run.worker_pids()[-1], signal.SIGTERM)
        run.wait_for_text("is taken away (SIGTERM): checkpoint of step")
        assert run.finish() == 0, run.text
    assert "failed" not in run.text
    (saved,) = re.findall(r"checkpoint of step ([\d,]+) written", run.text)
    assert f"going on from step-{int(saved.replace(',', '')):08d}" in run.text
    assert run.losses() == whole


def test_a_node_is_taken_away(data: Path, tmp_path: Path, whole: dict[int, float]) -> None:
    """Kubernetes' preemption: SIGTERM to `ray start`, which is given 30 seconds."""
    with Cluster() as cluster:
        cluster.add_node()
        leaving = cluster.add_node()
        cluster.wait_for_cpus(2)
        flags = (f"--address={cluster.address}", "--patience=120", "--checkpoint.every-steps=1000")
        with TrainRun(data, tmp_path / "run", *LONG, *flags, workers="1..2") as run:
            run.wait_for_step(40)
            leaving.terminate()
            run.wait_for_text("is taken away (SIGTERM): checkpoint of step")
            assert run.finish() == 0, run.text
        assert "failed" not in run.text
        assert "trained 350 steps with 1 worker in" in run.text
    assert_same_curve(run.losses(), whole)


def test_a_node_is_killed_and_another_comes(
    data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    with Cluster() as cluster:
        kept, lost = cluster.add_node(), cluster.add_node()
        cluster.wait_for_cpus(2)
        flags = (f"--address={cluster.address}", "--resize-every=2", "--patience=120")
        with TrainRun(data, tmp_path / "run", *LONG, *flags, workers="1..2") as run:
            run.wait_for_checkpoint()
            lost.kill()
            run.wait_for_text("restarting from the last checkpoint")
            run.wait_for_checkpoint(after_step=max(run.checkpoints()))
            with stopped(*workers_below(kept.process.pid)):  # the run is over in seconds
                cluster.add_node()
                cluster.wait_for_cpus(2)
            run.wait_for_text("going on with 2 workers")
            assert run.finish() == 0, run.text
        assert "trained 350 steps with 2 workers in" in run.text
    assert re.search(r"failed: node \S+ went away, and with it rank \d \(pid", run.text), run.text
    assert "going on with 1 worker" in run.text
    assert_same_curve(run.losses(), whole)


def test_the_network_to_a_node_is_cut_for_a_while(
    data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    """The run stands still and goes on."""
    need_namespaces()
    with Network() as network, cut_off_run(data, tmp_path / "run", network) as (run, nodes):
        network.cut(nodes[0].space)
        time.sleep(10)
        network.mend(nodes[0].space)
        assert run.finish() == 0, run.text
    assert "failed" not in run.text
    assert "trained 350 steps with 2 workers in" in run.text
    assert run.losses() == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_the_network_to_a_node_is_cut_for_good(
    rank: int, data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    """It goes on without the node; whose rank 0, which holds RUN, ends by itself."""
    need_namespaces()
    with Network() as network, cut_off_run(data, tmp_path / "run", network) as (run, nodes):
        network.cut(nodes[rank].space)
        assert run.finish() == 0, run.text
    assert re.search(rf"failed: rank {rank} .* has not answered for \d+ s", run.text), run.text
    assert "trained 350 steps with 1 worker in" in run.text
    assert_same_curve(run.losses(), whole)


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that stand still for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def cut_off_run(data: Path, out: Path, network: Network) -> Iterator[tuple[TrainRun, list[Node]]]:
    """A run on two nodes with a network of their own, past a checkpoint; its ranks' nodes."""
    with Cluster(network) as cluster:
        nodes = [cluster.add_node(), cluster.add_node()]
        cluster.wait_for_cpus(2)
        flags = (f"--address={cluster.address}", "--patience=120", "--resize-every=1000")
        with TrainRun(data, out, *LONG, *flags, workers="1..2") as run:
            run.wait_for_step(1)
            writer = json.loads((out / "owner.json").read_text())["pid"]
            nodes.sort(key=lambda node: writer not in descendants(node.process.pid))
            run.wait_for_checkpoint()
            yield run, nodes


def test_the_head_is_restarted(
    data: Path, tmp_path: Path, whole: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster has forgotten the job; `tandem status` has not, and says what to type."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "run"
    with Cluster() as cluster:
        at = f"--address={cluster.dashboard}"
        folder = f"--working-dir={tmp_path / 'empty'}"
        cluster.add_node(cpus=2)
        cluster.wait_for_cpus(2)
        training = (f"--data={data}", f"--out={out}", "--workers=2", "--discovery-port=0")
        submitted = tandem("submit", at, folder, "--detach", "--", "train", "demo", *training,
                           *SMALL, *LONG)  # fmt: skip
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        job = submitted.stdout.split()[1]
        wait_until(lambda: any(out.glob("checkpoints/*/checkpoint.json")), tandem, "logs", job, at)
        assert f"{out}: training on" in tandem("status", str(out)).stdout
        cluster.restart_head()
        found = tandem("status", at)
        assert f"{job}  LOST        tandem train demo" in found.stdout, found.stdout + found.stderr
        assert f"{out}: " in found.stdout and "newest checkpoint of step" in found.stdout
        cluster.add_node(cpus=2)
        cluster.wait_for_cpus(2)
        resumed = tandem("submit", at, folder, "--", "resume", str(out), "--workers=2")
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert "going on from step-" in resumed.stdout
    assert read_losses(out) == whole
    last = max(whole)
    assert tandem("status", str(out)).stdout.startswith(f"{out}: finished, step {last} of {last}")


def tandem(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)


def wait_until(is_true: Callable[[], bool], tell: Callable[..., Any], *told: str) -> None:
    deadline = time.monotonic() + 4 * WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, tell(*told).stdout
        time.sleep(0.2)


def assert_same_curve(losses: dict[int, float], whole: dict[int, float]) -> None:
    """The same global batches; but sums over ranks are added in another order."""
    assert losses.keys() == whole.keys()
    for step, loss in losses.items():
        assert loss == pytest.approx(whole[step], rel=1e-3), step
