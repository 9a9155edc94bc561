"""Slurm itself (Debian's slurmctld, slurmd and munge), on this machine.

Each node has a network namespace, an address and a name of its own, and takes that name for
127.0.1.1, as Debian's hosts do.
"""

import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest

from tests.cluster.namespaces import Network

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged", "unshare")
START_SECONDS = 120
CONTROLLER_PORT, NODE_PORT = 7817, 7818


def need_slurm() -> None:
    """Skip where it is not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"no {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)"
        )


class Slurm:
    """A controller and `count` nodes of two CPUs. A context manager."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.folder = folder
        self._names = [f"n{number}" for number in range(1, count + 1)]
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Slurm":
        with ExitStack() as stack:
            network = stack.enter_context(Network())
            stack.callback(self._end)
            spaces = {name: network.add_space() for name in self._names}
            self._configure(network.head, {name: address for name, (_, address) in spaces.items()})
            self._munge()
            self._start("ctl", [], "exec slurmctld -D")
            for name, (space, _) in spaces.items():
                hosts = self.folder / f"hosts-{name}"
                hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
                inside = ["ip", "netns", "exec", space]
                own = f"mount --bind {hosts} /etc/hosts && exec slurmd -D -N {name}"
                self._start(name, inside, own)
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.run("scancel", "--user=root", check=False)
        time.sleep(2)
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, check: bool = True) -> str:
        """A client's output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr + self.logs()
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job, by name."""
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self) -> str:
        files = sorted(self.folder.glob("*.out"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-1000:]}" for file in files)

    def _configure(self, head: str, nodes: dict[str, str]) -> None:
        here = self.folder
        (here / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        (here / "state").mkdir()
        lines = [
            "ClusterName=test",
            f"SlurmctldHost=ctl({head})",
            f"SlurmctldPort={CONTROLLER_PORT}",
            f"SlurmdPort={NODE_PORT}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={here / 'munge.sock'}",
            "CryptoType=crypto/munge",
            f"StateSaveLocation={here / 'state'}",
            f"SlurmdSpoolDir={here}/spool-%n",
            f"SlurmctldPidFile={here / 'ctl.pid'}",
            f"SlurmdPidFile={here}/%n.pid",
            "ProctrackType=proctrack/pgid",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "MpiDefault=none",
            "ReturnToService=2",
            "KillWait=20",
        ]
        for name, address in nodes.items():
            (here / f"spool-{name}").mkdir()
            lines.append(f"NodeName={name} NodeAddr={address} CPUs=2 RealMemory=1000 State=UNKNOWN")
        lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE")
        (here / "slurm.conf").write_text("\n".join(lines) + "\n")

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        flags = {"key-file": "key", "socket": "sock", "pid-file": "pid", "seed-file": "seed"}
        files = [f"--{flag}={self.folder / f'munge.{suffix}'}" for flag, suffix in flags.items()]
        command = ["munged", "--foreground", "--force", *files]
        log = (self.folder / "munged.out").open("w")
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _start(self, name: str, prefix: list[str], script: str) -> None:
        """A daemon on a host of that name."""
        inside = f"hostname {name} && {script}"
        command = [*prefix, "unshare", "--uts", "--mount", "bash", "-c", inside]
        log = (self.folder / f"{name}.out").open("w")
        self._processes.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.run("sinfo", "--noheader", "--format=%t %D", check=False) != "idle 2":
            assert time.monotonic() < deadline, self.logs()
            time.sleep(1)

    def _end(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
