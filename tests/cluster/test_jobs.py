"""Jobs on a real cluster, without a token and with one: submitted, followed, looked at, stopped."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import RAY, Cluster
from tests.cluster.runs import SMALL, WAIT_SECONDS
from tests.datasets import make_dataset

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
TOKEN = "ab" * 32
SHORT = ("--workers=1", "--discovery-port=0", *SMALL)

Tandem = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jobs") / "data"
    make_dataset(path)
    return path


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["no token", "token"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(token=request.param) as cluster:
        cluster.add_node(cpus=2)
        cluster.wait_for_cpus(2)
        yield cluster


@pytest.fixture
def tandem(cluster: Cluster, tmp_path: Path) -> Tandem:
    """Run `tandem COMMAND --address THE CLUSTER'S ...`, knowing its token."""
    environment = cluster.environment | {"XDG_STATE_HOME": str(tmp_path / "state")}

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        at = f"--address={cluster.dashboard}"
        line = [sys.executable, "-m", "cluster.cli", command, at, *arguments]
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=1200)

    return run


def test_a_submitted_run_is_followed_to_its_end(data: Path, tmp_path: Path, tandem: Tandem) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "run"
    folder = f"--working-dir={tmp_path / 'empty'}"
    training = (f"--data={data}", f"--out={out}", *SHORT, "--training.max-steps=5")
    done = tandem("submit", folder, "--", "train", "demo", *training)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f": {sys.executable} -m tandem train demo" in done.stdout  # its own, with the token too
    first, *streamed = done.stdout.splitlines()
    assert first.startswith("job raysubmit_")
    assert any(line.startswith("training  5/5  loss ") for line in streamed), done.stdout
    assert any("trained 5 steps with 1 worker in" in line for line in streamed), done.stdout
    assert (out / "summary.json").exists()
    again = tandem("submit", folder, "--", "train", "demo", *training)
    assert again.returncode == 0, again.stdout  # `--resume auto`: a scheduler may ask again
    assert not any(line.startswith("training  ") for line in again.stdout.splitlines())


def test_a_detached_job_is_looked_at_and_stopped(
    data: Path, tmp_path: Path, tandem: Tandem
) -> None:
    (tmp_path / "empty").mkdir()
    training = (f"--data={data}", f"--out={tmp_path / 'run'}", *SHORT, "--training.epochs=100000")
    begun = tandem(
        "submit",
        f"--working-dir={tmp_path / 'empty'}",
        "--detach",
        "--",
        "train",
        "demo",
        *training,
    )
    assert begun.returncode == 0, begun.stdout + begun.stderr
    job = begun.stdout.split()[1]
    assert f"next: tandem logs {job} --follow" in begun.stdout
    wait_for(lambda: "training  " in tandem("logs", job).stdout, lambda: tandem("logs", job).stdout)
    assert tandem("status", job).stdout.startswith(f"{job}  RUNNING")
    assert f"{job}  RUNNING     tandem train demo" in tandem("status").stdout
    ended = tandem("stop", job).stdout.splitlines()
    assert ended[0].startswith(f"stopping {job}: a run writes a checkpoint first"), ended
    assert ended[1] == f"{job} is STOPPED"
    assert f"{tmp_path / 'run'}: stopped" in ended[2] and "newest checkpoint of step" in ended[2]
    again = tandem("stop", job)
    assert again.returncode == 1
    assert again.stderr == f"error: job {job} is STOPPED already\n"


def test_ray_job_submit_runs_the_command(data: Path, tmp_path: Path, cluster: Cluster) -> None:
    flags = (f"--data={data}", f"--out={tmp_path / 'run'}", *SHORT, "--training.max-steps=5")
    here = str(Path(sys.executable).parent / "tandem")
    line = [str(RAY), "job", "submit", f"--address={cluster.dashboard}", "--", here, "train"]
    done = subprocess.run(
        [*line, "demo", *flags],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained 5 steps with 1 worker in" in done.stdout


def test_without_the_token_one_line_says_what_to_set(
    data: Path, tmp_path: Path, cluster: Cluster
) -> None:
    if "RAY_AUTH_TOKEN" not in cluster.environment:
        pytest.skip("this cluster asks for no token")
    nobody = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    nobody |= {"HOME": str(tmp_path)}
    training = ("train", "demo", f"--data={data}", f"--out={tmp_path / 'run'}")
    for command in (
        ("status", f"--address={cluster.dashboard}"),
        ("submit", f"--address={cluster.dashboard}", "--", "doctor"),
        (*training, f"--address={cluster.address}"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", *command],
            env=nobody, capture_output=True, text=True, timeout=1200, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 1
        told = done.stderr.splitlines()[-1]
        assert told.startswith("error: the Ray cluster at "), done.stderr
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in told
        assert done.stderr.count("error: ") == 1, done.stderr


def wait_for(is_true: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + 4 * WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, told()
        time.sleep(1)
