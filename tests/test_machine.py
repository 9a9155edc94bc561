"""Shares of a machine, as version 1 and 2 of Linux' control groups tell them."""

import subprocess
import sys
from pathlib import Path

import pytest

import trainer
from trainer.base.machine import usable_cpus, usable_memory_bytes

GIB = 1 << 30
PACKAGES = Path(trainer.__file__).parents[1]
MOUNTS_V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
MOUNTS_V1 = (
    "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"
)


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A root folder whose process is in `groups`, with `files` below /sys/fs/cgroup."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(groups + "\n")
    (proc / "mountinfo").write_text(
        "23 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n" + mounts + "\n"
    )
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)


@pytest.mark.parametrize(
    ("files", "cpus", "gib"),
    [
        ({"cpu.max": "400000 100000", "memory.max": str(8 * GIB)}, 4, 8),
        ({"cpu.max": "350000 100000", "memory.max": "max"}, 3, 64),
        ({"cpu.max": "50000 100000"}, 1, 64),
        ({"cpu.max": "max 100000", "memory.max": str(128 * GIB)}, 16, 64),
        ({"cpu.max": "6400000 100000"}, 16, 64),
        ({}, 16, 64),
    ],
)
def test_a_container_of_version_2(
    tmp_path: Path, files: dict[str, str], cpus: int, gib: int
) -> None:
    root = machine(tmp_path, "0::/", MOUNTS_V2, files or {"cgroup.procs": ""})
    assert (usable_cpus(root), usable_memory_bytes(root)) == (cpus, gib * GIB)


def test_the_smallest_of_all_groups_above_holds(tmp_path: Path) -> None:
    files = {
        "slurm/job_7/cpu.max": "800000 100000",
        "slurm/job_7/step_0/cpu.max": "max 100000",
        "slurm/job_7/memory.max": str(32 * GIB),
        "slurm/job_7/step_0/memory.max": str(48 * GIB),
        "slurm/job_8/cpu.max": "100000 100000",
    }
    root = machine(tmp_path, "0::/slurm/job_7/step_0", MOUNTS_V2, files)
    assert (usable_cpus(root), usable_memory_bytes(root)) == (8, 32 * GIB)


@pytest.mark.parametrize(
    ("path", "mounted"),
    [("/docker/ab12", "/docker/ab12"), ("/docker/ab12", "/"), ("/", "/"), ("/elsewhere", "/")],
    ids=["container, the machine's path", "machine", "own namespace", "another namespace's path"],
)
def test_version_1(tmp_path: Path, path: str, mounted: str) -> None:
    where = "docker/ab12/" if (path, mounted) == ("/docker/ab12", "/") else ""
    files = {
        f"cpu,cpuacct/{where}cpu.cfs_quota_us": "200000",
        f"cpu,cpuacct/{where}cpu.cfs_period_us": "100000",
        f"memory/{where}memory.limit_in_bytes": str(2 * GIB),
    }
    groups = f"9:name=systemd:{path}\n4:cpu,cpuacct:{path}\n3:memory:{path}\n0::{path}"
    root = machine(tmp_path, groups, MOUNTS_V1.format(root=mounted), files)
    assert (usable_cpus(root), usable_memory_bytes(root)) == (2, 2 * GIB)


def test_version_1_without_limits(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    root = machine(tmp_path, "4:cpu,cpuacct:/\n3:memory:/", MOUNTS_V1.format(root="/"), files)
    assert (usable_cpus(root), usable_memory_bytes(root)) == (16, 64 * GIB)


def test_a_system_without_groups(tmp_path: Path) -> None:
    assert (usable_cpus(tmp_path), usable_memory_bytes(tmp_path)) == (16, 64 * GIB)


def test_nobody_reckons_with_the_whole_machine() -> None:
    """One function knows about shares; what asks the system itself would not."""
    asking = ("sched_getaffinity", "cpu_count()", "SC_PHYS_PAGES")
    found = [
        f"{file.relative_to(PACKAGES)}: {line.strip()}"
        for package in ("cluster", "trainer", "embeddings", "losses")
        for file in (PACKAGES / package).rglob("*.py")
        if file.name != "machine.py"
        for line in file.read_text().splitlines()
        if any(word in line for word in asking)
    ]
    assert found == []


def test_a_real_group_of_one_cpu(tmp_path: Path) -> None:
    """Where groups can be made (root): `tandem doctor` and a run's threads go by them."""
    group = make_group("tandem-test-machine")
    try:
        code = "from trainer.base.machine import usable_cpus as c, usable_memory_bytes as m\n"
        code += "print(c(), m())"
        entered = (
            f"echo $$ | tee {' '.join(f'{folder}/cgroup.procs' for folder in group)} > /dev/null"
        )
        done = subprocess.run(
            ["bash", "-c", f'{entered} && exec "$0" -c "$1"', sys.executable, code],
            capture_output=True,
            text=True,
            cwd=PACKAGES,
        )
        assert done.stdout.split() == ["1", str(GIB)], done.stderr
    finally:
        for folder in group:
            folder.rmdir()


def make_group(name: str) -> list[Path]:
    """A group of one CPU and 1 GiB; skips where none can be made."""
    base = Path("/sys/fs/cgroup")
    limits: dict[str, dict[str, str]]
    if (base / "cgroup.controllers").exists():
        limits = {name: {"cpu.max": "100000 100000", "memory.max": str(GIB)}}
    else:
        quota = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
        limits = {f"cpu/{name}": quota, f"memory/{name}": {"memory.limit_in_bytes": str(GIB)}}
    made: list[Path] = []
    try:
        for folder, files in limits.items():
            (base / folder).mkdir()
            made.append(base / folder)
            for file, text in files.items():
                (base / folder / file).write_text(text)
    except OSError as error:
        for folder_made in made:
            folder_made.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    return made


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5})
    root = machine(tmp_path, "0::/", MOUNTS_V2, {"cpu.max": "400000 100000"})
    assert usable_cpus(root) == 2
