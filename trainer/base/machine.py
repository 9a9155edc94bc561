"""What this process may use of its machine: a container, a pod or a Slurm job has a share of it;
and that memory which it freed stays with it, for what is to come.

Linux keeps shares in control groups: CPUs as a quota of time, memory as a limit. Neither shows in
`os.cpu_count()` or in the machine's physical memory; both hold for every group above one's own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path("/")
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt."""
LARGEST_KEPT = 32 << 20
"""Bytes of the largest block that is kept: glibc's limit."""
KEPT = 512 << 20
"""Bytes that stay at most at the end of its heap."""
TAKEN_AT_ONCE = 64 << 20
"""Bytes that the heap grows by; the system gives a page when it is first written."""


def usable_cpus(root: Path = ROOT) -> int:
    """CPUs that this process may keep busy: by its affinity and its groups' quotas; at least 1.

    A quota of 3.5 CPUs is 3: a fourth thread would be halted again and again.
    """
    quotas = [
        *(_quota_v2(folder) for folder in _groups("", root)),
        *(_quota_v1(folder) for folder in _groups("cpu", root)),
    ]
    return int(max(1.0, min([len(os.sched_getaffinity(0)), *quotas])))


def usable_memory_bytes(root: Path = ROOT) -> int:
    """Memory of the machine, or the smallest limit of this process' groups."""
    limits = [
        *(_number(folder / "memory.max") for folder in _groups("", root)),
        *(_number(folder / "memory.limit_in_bytes") for folder in _groups("memory", root)),
    ]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min([physical, *limits]))


def processor(root: Path = ROOT) -> str:
    """The name of the first CPU, as the kernel has it."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, name = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return name.strip()
    return "CPU"


def _quota_v2(folder: Path) -> float:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return float(quota) / float(period) if quota.isdigit() and period.isdigit() else float("inf")


def _quota_v1(folder: Path) -> float:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return float(quota) / float(period) if quota.isdigit() and period.isdigit() else float("inf")


def _number(file: Path) -> float:
    text = _text(file)
    return float(text) if text.isdigit() else float("inf")


def _text(file: Path) -> str:
    """What a group's file says; nothing where there is none (-1 and "max": no limit)."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process' group and of all above it; controller "": version 2.

    A container sees its own group as the root of a mount, or (version 1) the machine's path of it.
    """
    path = _path_of(controller, root)
    if path is None:
        return
    for mounted_path, mount in _mounts(controller, root):
        below = path.removeprefix(mounted_path.rstrip("/")) if mounted_path != path else ""
        folder = mount / below.lstrip("/")
        if not folder.is_dir():
            folder = mount  # another namespace's path
        yield folder
        for above in folder.parents:
            if not above.is_relative_to(mount):
                break
            yield above


def _path_of(controller: str, root: Path) -> str | None:
    """This process' group, as /proc/self/cgroup has it: "4:cpu,cpuacct:/path"."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return None


def _mounts(controller: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Where groups are mounted: the path that is mounted, and where."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, device = line.partition(" - ")
        if not device:
            continue
        kind, _, options = device.split(" ", 2)
        _, _, _, mounted_path, point, *_ = mount.split(" ")
        of_version_1 = kind == "cgroup" and controller in options.split(",")
        if of_version_1 if controller else kind == "cgroup2":
            yield mounted_path, root / point.lstrip("/")


@lru_cache
def keep_freed_memory() -> bool:
    """Have the C library keep blocks that are freed; False where it is not glibc.

    Windows and batches are megabytes each, and as many come as go. Otherwise each is given back to
    the system and taken anew, a fault a page: a tenth of the loader's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {MMAP_THRESHOLD: LARGEST_KEPT, TRIM_THRESHOLD: KEPT, TOP_PAD: TAKEN_AT_ONCE}
    return all(mallopt(parameter, value) for parameter, value in wanted.items())
