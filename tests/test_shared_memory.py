"""A /dev/shm that is full is one line with the remedy, and nobody else's fault."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from cluster.workers.failures import RunFailedError, first_cause
from trainer.base.mistake import Mistake
from trainer.launch.causes import is_consequence
from trainer.launch.shared_memory import LEAST_BYTES, check_shared_memory, with_remedy
from trainer.tools.doctor import shared_memory_problems

NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled system error, NCCL version 2.27.5\n"
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed.\n"
    "Last error:\nError while creating shared memory segment /dev/shm/nccl-IBW1 (size 9637888), "
    "error: No space left on device (28)"
)
Usage = namedtuple("Usage", "total used free")


def free(monkeypatch: pytest.MonkeyPatch, left: int, total: int = 64 << 20) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total, total - left, left))


def test_ranks_that_would_find_no_room_are_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 8 * LEAST_BYTES)
    check_shared_memory(8, tmp_path)
    free(monkeypatch, 8 * LEAST_BYTES - 1)
    with pytest.raises(Mistake, match=r"has 79 MiB free of 64, and NCCL needs 80 MiB for 8 ranks"):
        check_shared_memory(8, tmp_path)
    check_shared_memory(1, tmp_path)
    check_shared_memory(8, tmp_path / "absent")


def test_one_that_fills_up_meanwhile_is_the_first_cause() -> None:
    assert not is_consequence(RuntimeError(NCCL))
    assert is_consequence(RuntimeError("NCCL communicator was aborted"))
    told = first_cause(RuntimeError(NCCL))
    assert isinstance(told, RunFailedError) and told.retry
    assert "/dev/shm is full: remove" in str(told) and "\n" not in str(told)
    assert "--shm-size=8g" in with_remedy("was ended by SIGBUS")
    assert with_remedy("was ended by SIGSEGV") == "was ended by SIGSEGV"


@pytest.mark.parametrize(
    ("left", "total", "what"),
    [(1 << 30, 1 << 31, ""), (1 << 20, 1 << 31, "1 MiB left"), (1 << 25, 1 << 26, "holds 64 MiB")],
)
def test_doctor_says_what_is_left(
    left: int, total: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, left, total)
    problems = shared_memory_problems(tmp_path)
    assert [what in problem.what for problem in problems] == ([True] if what else [])


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
def test_ranks_on_cpus_train_beside_a_full_one(tmp_path: Path) -> None:
    """In a mount namespace of its own: 64 KiB, all taken, when the ranks start."""
    import subprocess
    import sys

    from tests.datasets import make_dataset

    make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    script = (
        "mount -t tmpfs -o size=64k tmpfs /dev/shm && "
        "dd if=/dev/zero of=/dev/shm/other bs=64k count=1 2>/dev/null; exec "
        f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 "
        f"-m trainer.train demo --data {tmp_path}/data --out {tmp_path}/run --training.epochs 1"
    )
    command = ["unshare", "-m", "bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
