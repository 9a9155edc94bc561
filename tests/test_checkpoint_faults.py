"""A checkpoint is whole or does not count, wherever its writing is cut off or files are hurt."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.datasets import make_dataset
from tests.distributed import run_ranks
from tests.killed_checkpoint import DISK_FULL, STAGES, STATUS
from tests.one_rank import Notes
from tests.test_training import small_config
from trainer.run import checkpoint_facts
from trainer.run import checkpoint_write as checkpoint
from trainer.run.checkpoint_facts import read_facts, write_facts
from trainer.run.folder import RunSpec
from trainer.train import run_worker

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
    left = sorted((out / "checkpoints").glob("step-*"))
    assert left == checkpoints(out), "remains of the killed one"


@pytest.mark.parametrize("hurt", ["truncated", "one byte", "gone"])
def test_a_damaged_shard_is_found_and_the_one_before_used(
    hurt: str, data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    out = tmp_path / "run"
    assert run("before commit", data, out).returncode == STATUS  # one checkpoint, of step 4
    first = checkpoints(out)[-1]
    second = first.with_name("step-00000006")
    shutil.copytree(first, second)
    write_facts(second, replace(read_facts(first), step=6))
    (shard,) = second.glob("*.safetensors")
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
    """The disk is full for four steps: the checkpoint and the lines of metrics of then fail."""
    out = tmp_path / "run"
    done = run(DISK_FULL, data, out)
    assert done.returncode == 0, done.stderr
    assert "checkpoint not written: rank 0: [Errno 27] File too large" in done.stderr
    assert "training goes on" in done.stderr
    assert "metrics are not written to" in done.stderr
    kept = losses(out)
    assert set(whole) - set(kept) <= {6, 7, 8, 9}
    assert all(kept[step] == whole[step] for step in kept)
    left = [path.name for path in (out / "checkpoints").glob("step-*")]
    assert left == [f"step-{max(whole):08d}"]  # a broken one's bytes are needed


def train_with_a_full_disk(spec: RunSpec, rank: int, stage: str) -> list[str]:
    """On `rank` the second checkpoint (of step 8) meets a full disk; what was said."""

    def full(*arguments: Any, **keywords: Any) -> Any:
        if "step-00000008" in str(arguments):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **keywords)

    owner, name = {
        "shards": (Path, "open"),
        "commit": (checkpoint_facts, "write_json"),
        "folder": (checkpoint, "remove_tree"),
    }[stage]
    real = getattr(owner, name)
    if dist.get_rank() == rank:
        setattr(owner, name, full)
    notes = Notes()
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    run_worker(spec, notes)
    return notes.said


@pytest.mark.parametrize(("rank", "stage"), [(1, "shards"), (0, "commit"), (0, "folder")])
def test_one_full_disk_among_several_nodes(
    rank: int, stage: str, data: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    """No rank waits for the one that cannot write; all drop that checkpoint and go on."""
    out = tmp_path / "run"
    config = small_config(checkpoint={"every_steps": 4, "keep": 5}, training={"epochs": 1})
    spec = RunSpec("ml-100k", config, str(data), str(out))
    said, _ = run_ranks(2, train_with_a_full_disk, spec, rank, stage, timeout_seconds=100)
    assert (
        f"checkpoint not written: rank {rank}: [Errno 28] No space left on device; "
        "training goes on" in said
    )
    assert [path.name for path in checkpoints(out)] == ["step-00000004", "step-00000010"]
    assert losses(out) == pytest.approx(whole, rel=1e-4)
