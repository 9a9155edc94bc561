"""A checkpoint is whole or does not count, wherever its writing is cut off or files are hurt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.killed_checkpoint import DISK_FULL, STAGES, STATUS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(stage: str, data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.killed_checkpoint", stage, str(data), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


def losses(out: Path) -> dict[int, float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def checkpoints(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("checkpoints/step-*/checkpoint.json"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "data"
    make_dataset(path, users=80, items=60, rows=1500)
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by step of the run to which nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = run("nothing", data, out)
    assert done.returncode == 0, done.stderr
    assert len(losses(out)) >= 10
    return losses(out)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_writing(
    stage: str, data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    out = tmp_path / "run"
    killed = run(stage, data, out)
    assert killed.returncode == STATUS, killed.stderr
    kept = "step-00000008" if stage == "dropping" else "step-00000004"
    assert checkpoints(out)[-1].name == kept
    resumed = run("resume", data, out)
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on from {kept}" in resumed.stderr
    assert losses(out) == whole


@pytest.mark.parametrize("hurt", ["truncated", "one byte", "gone"])
def test_a_damaged_shard_is_found_and_the_one_before_used(
    hurt: str, data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    out = tmp_path / "run"
    assert run("before commit", data, out).returncode == STATUS  # one checkpoint, of step 4
    first = checkpoints(out)[-1]
    second = first.with_name("step-00000006")
    subprocess.run(["cp", "-r", first, second], check=True)
    shard = max(second.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    if hurt == "gone":
        shard.unlink()
    elif hurt == "truncated":
        shard.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    resumed = run("resume", data, out)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{second.name} is damaged ({shard.name})" in resumed.stderr
    assert f"going on from {first.name}" in resumed.stderr
    assert losses(out) == whole


def test_a_full_disk_does_not_end_the_run(
    data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    out = tmp_path / "run"
    done = run(DISK_FULL, data, out)
    assert done.returncode == 0, done.stderr
    assert "checkpoint not written" in done.stderr
    assert "training goes on" in done.stderr
    assert losses(out) == whole
    assert checkpoints(out)[-1].name == f"step-{max(whole):08d}"
