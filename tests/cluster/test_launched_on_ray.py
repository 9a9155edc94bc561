"""Work on a real Ray cluster that stands: the answers of one process, on its workers."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tandem
from cluster.cli import main
from tests.cluster.nodes import Cluster, descendants
from tests.cluster.runs import read_losses, title
from tests.datasets import make_dataset
from tests.retrieval.test_commands import tiny_config
from trainer.api.run import close_all
from trainer.compare.trials import Trial, run_trials
from trainer.launch.causes import WorkFailedError
from trainer.launch.here import Here
from trainer.launch.processes import Processes
from trainer.observe.progress import SilentProgress
from trainer.retrieval.arguments import EvaluateArguments
from trainer.retrieval.evaluate_run import evaluate_by
from trainer.run.folder import RunSpec
from trainer.run.state import read_state
from trainer.train import run_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, so that nothing can be done in it, and a node with two."""
    with Cluster() as standing, pytest.MonkeyPatch.context() as patched:
        standing.add_node(cpus=2)
        standing.wait_for_cpus(2)
        patched.setenv("RAY_AUTH_MODE", "disabled")
        yield standing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("launched")
    data = make_dataset(path / "data", users=50, items=40, rows=900)
    spec = RunSpec("ml-100k", tiny_config(), data.path, str(path / "run"))
    run_worker(spec, SilentProgress())
    return path / "run"


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """All but the time it took; sums over ranks differ in their last digits."""
    kept = {name: value for name, value in record.items() if name != "seconds"}
    read: dict[str, Any] = json.loads(json.dumps(kept), parse_float=lambda t: round(float(t), 7))
    return read


def test_an_evaluation_is_the_same_wherever_it_is_made(
    run: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = EvaluateArguments(str(run), split="test")
    here = evaluate_by(Here(SilentProgress()), arguments).record
    processes = evaluate_by(Processes(2), arguments).record
    (run / "evaluation.json").unlink()
    flags = ["--split", "test", "--workers", "2", "--address", cluster.address]
    assert main(["evaluate", str(run), *flags]) == 0
    shown = capsys.readouterr()
    assert "popularity ranking" in shown.out and "starting workers (2)" in shown.err
    on_ray = json.loads((run / "evaluation.json").read_text())["test"]
    assert figures(here) == figures(processes) == figures(on_ray)


def test_a_job_does_not_evaluate_in_its_driver(
    run: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray names the cluster to its jobs by RAY_ADDRESS; the driver is on the head."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(Here, "run", lambda *_: pytest.fail("evaluated in the driver"))
    assert main(["evaluate", str(run), "--users", "20"]) == 0
    assert "starting workers (1)" in capsys.readouterr().err
    assert json.loads((run / "evaluation.json").read_text())["validation"]["users"] == 20


def test_an_export_by_workers_of_ray_holds_what_one_process_writes(
    run: Path, cluster: Cluster, tmp_path: Path
) -> None:
    trained = tandem.load(run)
    one = trained.export(tmp_path / "one")
    two = trained.export(tmp_path / "two", workers=2, address=cluster.address)
    assert one == two
    for side in ("items", "users"):
        left, right = (pq.read_table(tmp_path / name / side) for name in ("one", "two"))
        assert left.drop(["embedding"]) == right.drop(["embedding"])
        embeddings = [np.stack(t.column("embedding").to_numpy()) for t in (left, right)]
        np.testing.assert_allclose(*embeddings, atol=1e-6)
    assert len(list((tmp_path / "two/items").iterdir())) == 2
    close_all()


def test_everybody_is_answered_by_workers_as_by_one_process(
    run: Path, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recommend", str(run), "--all", "-k", "5", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "two"), "--address", cluster.address]) == 0
    assert "50 users in 1 part:" in capsys.readouterr().out
    tables = [pq.read_table(tmp_path / name / "part-00000.parquet") for name in ("one", "two")]
    assert tables[0].num_rows == 50 and tables[0] == tables[1]
    close_all()


def test_the_cluster_of_this_machine_is_found_by_itself(
    run: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`address="auto"`: other clusters may run here; Ray notes which was started last."""
    noted = cluster.folder / "ray" / "ray_current_cluster"
    noted.parent.mkdir()
    noted.write_text(cluster.address)
    monkeypatch.setenv("RAY_TMPDIR", str(cluster.folder))
    data = run.parent / "data"
    trained = tandem.train(
        tiny_config(), data=data, out=tmp_path / "run", workers=2, address="auto", discovery_port=0
    )
    assert trained.summary["workers"] == 2
    on_ray = trained.evaluate(users=20, address="auto")
    assert figures(on_ray) == figures(trained.evaluate(users=20))
    close_all()


def test_trainings_of_a_comparison_are_tasks(run: Path, cluster: Cluster, tmp_path: Path) -> None:
    from cluster.workers.options import launcher_of_trials

    data = str(run.parent / "data")
    trials = [Trial(name, tiny_config(), data, "test") for name in ("a", "b", "c")]
    found = [
        run_trials(trials, tmp_path / name, launcher, SilentProgress())
        for name, launcher in (
            ("here", launcher_of_trials(2, "local")),
            ("ray", launcher_of_trials(2, cluster.address)),
        )
    ]
    values = [{name: result["values"] for name, result in each.items()} for each in found]
    assert values[0].keys() == {"a", "b", "c"}
    for name in values[0]:
        assert values[0][name] == pytest.approx(values[1][name])


def test_a_mistake_is_one_line(
    run: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of data that only the workers look for: this machine need not see them."""
    flags = ["--address", cluster.address, "--data", str(run.parent / "none")]
    assert main(["evaluate", str(run), *flags]) == 1
    joining, starting, *_, error = capsys.readouterr().err.splitlines()
    assert joining == f"joining Ray at {cluster.address}"
    assert starting.startswith("starting workers") and error.startswith("error: ")
    assert str(run.parent / "none") in error
    many = ["--address", cluster.address, "--workers", "3"]
    assert main(["evaluate", str(run), *many]) == 1
    assert "error: --workers 3: the cluster has 2 CPUs" in capsys.readouterr().err


def test_a_run_whose_worker_was_killed_says_so_itself(
    run: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """The rank that knows is gone; the driver has told its own terminal alone."""
    out, (node,) = tmp_path / "run", cluster.nodes
    config = tiny_config()
    endless = replace(config, training=replace(config.training, max_steps=None, epochs=10_000))

    def kill_a_worker() -> None:
        while not out.is_dir() or not read_losses(out):
            time.sleep(0.2)
        workers = [p for p in descendants(node.process.pid) if "RayTrainWorker" in title(p)]
        os.kill(workers[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(WorkFailedError, match="worker process died"):
        tandem.train(
            endless,
            data=run.parent / "data",
            out=out,
            workers=2,
            address=cluster.address,
            max_failures=0,
            discovery_port=0,
        )
    killer.join()
    state = read_state(out)
    assert state.cause is not None and "worker process died" in state.cause
    assert (state.phase, state.is_alive) == ("failed", False)
