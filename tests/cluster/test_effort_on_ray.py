"""--effort on a cluster: what is tried runs on its nodes, and is not tried again after a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cluster.nodes import Cluster
from tests.datasets import make_dataset

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]
WAIT_SECONDS = 600


class Driver:
    """`tandem train default --effort normal`, its lines as they come."""

    def __init__(self, cluster: Cluster, data: Path, out: Path) -> None:
        flags = ("--workers=2", "--training.epochs=6", "--discovery-port=0", "--resume=auto")
        at = (f"--data={data}", f"--out={out}", f"--address={cluster.address}")
        command = [sys.executable, "-m", "tandem", "train", "default", "--effort=normal"]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*command, *at, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=cluster.environment,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stdout)

    def finish(self) -> int:
        status = self.process.wait(timeout=2 * WAIT_SECONDS)
        self._reader.join(timeout=10)
        return status


def tries_of(out: Path) -> list[str]:
    file = out / "tries.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line)["digest"] for line in lines]


def test_killed_in_the_middle_of_the_tries_and_started_by_the_same_line(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    make_dataset(data, users=80, items=60, rows=1500)
    with Cluster() as cluster:
        for _ in range(2):
            cluster.add_node()
            cluster.wait_for_cpus(len(cluster.nodes))
        first = Driver(cluster, data, out)
        deadline = time.monotonic() + WAIT_SECONDS
        while not tries_of(out):
            assert first.process.poll() is None, first.lines
            assert time.monotonic() < deadline, first.lines
            time.sleep(0.05)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        before = tries_of(out)
        again = Driver(cluster, data, out)
        assert again.finish() == 0, again.lines
        print("\n".join(["first:", *first.lines, "again:", *again.lines]))
    tried = tries_of(out)
    assert tried[: len(before)] == before and len(set(tried)) == len(tried) > len(before)
    assert any(line.startswith("tried ") for line in again.lines), again.lines
    assert json.loads((out / "summary.json").read_text())["phase"] == "finished"
