"""/dev/shm: what NCCL, between GPUs of one machine, and Ray's object store need of it.

Where it fills up, NCCL says that a segment cannot be made, and a process that writes to what it has
mapped dies of SIGBUS. Ranks on CPUs do not use it.
"""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

from trainer.base.mistake import Mistake

SHARED_MEMORY = Path("/dev/shm")
LEAST_BYTES = 10 * 2**20
"""For each rank that shares a machine's: NCCL's first segment has 9.2 MiB."""
REMEDY = (
    "/dev/shm is full: remove what nobody needs there (`ls -lS /dev/shm`), or give it more "
    "(docker: --shm-size=8g; Kubernetes: shmGiB)"
)
_FULL = re.compile(
    r"/dev/shm.*no space left|shared memory segment|SIGBUS|bus error", re.IGNORECASE | re.DOTALL
)


def is_full(text: str) -> bool:
    """Whether words of a failure tell of it."""
    return bool(_FULL.search(text))


def with_remedy(told: str, whole: str = "") -> str:
    """What is told of a failure, and what helps where that, or the whole of it, tells of it."""
    return f"{told}; {REMEDY}" if is_full(f"{told}\n{whole}") else told


def check_shared_memory(ranks_here: int, shared: Path = SHARED_MEMORY) -> None:
    """Raise Mistake where so many ranks with GPUs of this machine would not find room."""
    if ranks_here < 2 or not shared.is_dir():
        return
    usage, needed = shutil.disk_usage(shared), ranks_here * LEAST_BYTES
    if usage.free < needed:
        raise Mistake(
            f"{shared} of {socket.gethostname()} has {usage.free >> 20} MiB free of "
            f"{usage.total >> 20}, and NCCL needs {needed >> 20} MiB for {ranks_here} ranks there: "
            "remove what nobody needs (`ls -lS /dev/shm`), or give it more (docker: "
            "--shm-size=8g; Kubernetes: shmGiB)"
        )
