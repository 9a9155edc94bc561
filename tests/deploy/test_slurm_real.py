"""torchrun.sbatch on Slurm itself: two nodes train, are stopped, and go on by the same line."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.workers.session import short_temp_folder
from tests.cluster.namespaces import need_namespaces
from tests.cluster.runs import SMALL
from tests.deploy.conftest import ROOT
from tests.deploy.fake_slurm import SCRIPTS
from tests.deploy.real_slurm import Slurm, need_slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WAIT_SECONDS = 400
PYTHON = f"""#!{sys.executable}
import os, sys
os.environ["PYTHONPATH"] = {str(ROOT)!r}
os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    need_slurm()
    need_namespaces()
    with tempfile.TemporaryDirectory(prefix="slurm-", dir=short_temp_folder()) as folder:
        Path(folder).chmod(0o755)  # munged asks for it
        with Slurm(Path(folder)) as found:
            yield found


def home(folder: Path) -> Path:
    """The checkout as the scripts see it."""
    programs = folder / "home" / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(PYTHON)
    (programs / "python").chmod(0o755)
    (folder / "home" / "deploy").mkdir()
    (folder / "home" / "deploy" / "slurm").symlink_to(SCRIPTS)
    return folder / "home"


def wait(what: str, slurm: Slurm, log: Path, done) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"{what}: {log.read_text()[-3000:]}{slurm.logs()}"
        time.sleep(1)


def test_a_job_is_stopped_and_goes_on_from_its_checkpoint(
    slurm: Slurm, data: str, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    job = slurm.run(
        *("sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", f"--output={log}"),
        f"--export=ALL,TANDEM_HOME={home(tmp_path)}",
        *(str(SCRIPTS / "torchrun.sbatch"), "demo", f"--data={data}", f"--out={out}"),
        *(*SMALL, "--training.epochs=100000"),
    )

    def steps() -> int:
        lines = out / "metrics.jsonl"
        return len(lines.read_text().splitlines()) if lines.exists() else 0

    wait("no step", slurm, log, lambda: steps() >= 3)
    slurm.run("scancel", "--batch", "--signal=TERM", job)  # as --signal=B:TERM@300 does
    wait("no requeue", slurm, log, lambda: slurm.job(job)["Restarts"] == "1")
    assert f"job {job} goes back into the queue" in log.read_text()
    (newest,) = sorted((out / "checkpoints").iterdir())[-1:]
    step = int(newest.name.removeprefix("step-"))
    assert step >= 3
    wait("not pending", slurm, log, lambda: slurm.job(job)["JobState"] == "PENDING")
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm waits two minutes

    def starts() -> list[dict]:
        return [json.loads(line) for line in (out / "starts.jsonl").read_text().splitlines()]

    wait("not started again", slurm, log, lambda: len(starts()) == 2)
    assert [(start["step"], start["world_size"]) for start in starts()] == [(0, 2), (step, 2)]
    wait("it does not go on", slurm, log, lambda: steps() > step)
    assert "start 1: " in log.read_text()
