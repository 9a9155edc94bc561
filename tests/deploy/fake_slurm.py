"""A Slurm of programs that only say what they are asked: the batch scripts run on this machine.

Each node has interfaces with addresses of its own, which a fake `ip` tells; what the scripts would
run (python, ray, tandem) writes down its arguments and environment instead.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.conftest import ROOT

SCRIPTS = ROOT / "deploy" / "slurm"
PYTHON = f"{sys.executable} -S"

SRUN = """
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = []
# As Slurm's: SIGTERM to srun ends its tasks at once, a signal by scancel is one that they may heed.
signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
signal.signal(signal.SIGUSR1, lambda *_: [task.terminate() for task in tasks])
with open(os.path.join(os.environ["FAKE_FOLDER"], "srun.pid"), "w") as file:
    file.write(str(os.getpid()))
for number, name in enumerate(os.environ["FAKE_NODES"].split(",")):
    own = {"SLURM_NODEID": str(number), "SLURMD_NODENAME": name}
    tasks.append(subprocess.Popen(words, env=os.environ | own))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """
if [ "$1" = requeue ]; then
  echo "$2" >>"$FAKE_FOLDER/requeued"
else
  echo "NodeName=$3 Arch=x86_64"
  echo "   NodeAddr=$(cat "$FAKE_FOLDER/$3.told") NodeHostName=x Version=22"
fi
"""
SCANCEL = """
[[ $* == "--signal=TERM $SLURM_JOB_ID" ]] && kill -USR1 "$(cat "$FAKE_FOLDER/srun.pid")"
"""
IP = """
cards=$FAKE_FOLDER/$SLURMD_NODENAME.cards
if [[ $* == *address* ]]; then
  while read -r name address; do
    echo "2: $name    inet $address/24 brd 10.0.0.255 scope global $name"
  done <"$cards"
else
  wanted=${*: -1}
  while read -r name address; do
    if [[ ${address%.*} == "${wanted%.*}" ]]; then
      echo "$wanted dev $name src $address uid 0 \\    cache"
    fi
  done <"$cards"
fi
"""
GETENT = """
echo "127.0.1.1       STREAM $2"
"""
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
name, node = Path(sys.argv[0]).name, os.environ["SLURMD_NODENAME"]
folder = Path(os.environ["FAKE_FOLDER"])
if name == "ray" and sys.argv[1] == "health-check":
    sys.exit(0 if (folder / "head").exists() else 1)
kept = ("GLOO_", "NCCL_", "RAY_", "OMP_", "TORCH_")
kept = {name: value for name, value in os.environ.items() if name.startswith(kept)}
said = {"arguments": sys.argv[1:], "environment": kept}
def stop(*_):
    (folder / f"{name}-{node}-stopped").touch()
    sys.exit(int(os.environ.get("FAKE_STATUS", "143")))
signal.signal(signal.SIGTERM, stop)
if name == "ray" and "FAKE_BUSY" in os.environ and not (folder / f"busy-{node}").exists():
    (folder / f"busy-{node}").touch()
    sys.exit(1)
(folder / f"{name}-{node}.new").write_text(json.dumps(said))
(folder / f"{name}-{node}.new").replace(folder / f"{name}-{node}.json")
if "--head" in sys.argv:
    (folder / "head").touch()
def all_nodes():
    nodes = os.environ["FAKE_NODES"].split(",")
    return all((folder / f"ray-{node}.json").exists() for node in nodes)
while name == "ray" or "FAKE_ENDLESS" in os.environ or (name == "tandem" and not all_nodes()):
    time.sleep(0.02)
sys.exit(int(os.environ.get("FAKE_STATUS", "0")))
"""


@dataclass
class Node:
    """A machine: what Slurm says its address is, and its network cards."""

    told: str
    cards: dict[str, str]


@dataclass
class FakeSlurm:
    """One job on `nodes`; `folder` holds the programs and what they wrote down."""

    folder: Path
    nodes: dict[str, Node]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shell = {"scontrol": SCONTROL, "ip": IP, "scancel": SCANCEL, "getent": GETENT, "sleep": ""}
        for name, text in shell.items():
            _program(self.folder / "bin" / name, "/bin/bash", text)
        _program(self.folder / "bin" / "srun", PYTHON, SRUN)
        home = self.folder / "home"
        for name in ("python", "ray", "tandem"):
            _program(home / ".venv" / "bin" / name, PYTHON, PROGRAM)
        (home / "deploy").mkdir()
        (home / "deploy" / "slurm").symlink_to(SCRIPTS)
        for name, node in self.nodes.items():
            (self.folder / f"{name}.told").write_text(node.told)
            cards = "".join(f"{card} {address}\n" for card, address in node.cards.items())
            (self.folder / f"{name}.cards").write_text(cards)

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """The batch script, as Slurm starts it on the first node."""
        first = next(iter(self.nodes))
        own = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_FOLDER": str(self.folder),
            "FAKE_NODES": ",".join(self.nodes),
            "SLURM_JOB_ID": "70123",
            "SLURM_NNODES": str(len(self.nodes)),
            "SLURMD_NODENAME": first,
            "SLURM_SUBMIT_DIR": str(self.folder / "home"),
        }
        theirs = ("GLOO_", "NCCL_", "RAY_", "OMP_", "TORCH_", "SLURM", "TANDEM_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
        return subprocess.Popen(
            ["bash", str(SCRIPTS / script), *arguments],
            env=clean | own | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, *arguments: str) -> tuple[int, str]:
        """To its end: status and output."""
        job = self.start(script, *arguments)
        said, _ = job.communicate(timeout=60)
        return job.returncode, said

    def stop_when(self, job: subprocess.Popen[str], *names: str) -> tuple[int, str]:
        """SIGTERM to the batch script alone, once these programs run."""
        deadline = time.monotonic() + 60
        while not all((self.folder / f"{name}.json").exists() for name in names):
            assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0]
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
        said, _ = job.communicate(timeout=60)
        return job.returncode, said

    def said(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment of a program on a node: "python-n1"."""
        found = json.loads((self.folder / f"{name}.json").read_text())
        return found["arguments"], found["environment"]

    def stopped(self, name: str) -> bool:
        return (self.folder / f"{name}-stopped").exists()

    @property
    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []


def _program(path: Path, interpreter: str, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{text}")
    path.chmod(0o755)
