"""`tandem serve --address` on a real Ray: answers, a change, a dead replica, the end."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from cluster.serving.nodes import check_installed
from tests.bundle.made import make_bundle
from tests.cluster.nodes import descendants, free_port, kill_quietly
from tests.serve.load import Told, change, load
from tests.serve.running import asked
from tests.serve.test_server import until
from trainer.base.mistake import Mistake

SECONDS = 240
SLOW_STARTS = os.environ | {"RAY_raylet_start_wait_time_s": "200"}
"""A machine that has much to do gets more time than Ray's own."""
try:
    check_installed()
except Mistake as _mistake:
    pytest.skip(str(_mistake), allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Served:
    """`tandem serve` in a process of its own, with a Ray of its own. A context manager that ends
    both."""

    def __init__(self, place: Path, *flags: str) -> None:
        self.port = free_port()
        self._log = place.with_name("serve.log")
        words = [sys.executable, "-m", "cluster.cli", "serve", str(place), *flags]
        words += ["--address", "local", "--port", str(self.port)]
        with self._log.open("w") as writes:
            self.process = subprocess.Popen(words, stderr=writes, env=SLOW_STARTS)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_until_up(self) -> None:
        until(lambda: "/replicas" in self.said or self.process.poll() is not None, SECONDS)
        assert self.process.poll() is None, self.said

    def targets(self) -> list[str]:
        """HOST:PORT of the metrics of each replica, by its number."""
        url = self.said.rpartition("metrics: ")[2].split()[0]
        with urlopen(url) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        assert [each["labels"]["replica"] for each in found] == sorted(
            each["labels"]["replica"] for each in found
        )
        return [each["targets"][0] for each in found]

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for pid in (*descendants(self.process.pid), self.process.pid):
                kill_quietly(pid)
            self.process.wait()


def metric(target: str, name: str) -> float:
    host, port = target.split(":")
    assert host == "127.0.0.1"
    text = asked(int(port), "GET", "/metrics")[1]
    found = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0].split()[1])


def test_two_replicas_answer_change_and_come_back(tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two", seed=1, step=2)
    link = tmp_path / "current"
    link.symlink_to(one)
    with Served(link, "--replicas", "2") as served:
        served.wait_until_up()
        until(lambda: len(served.targets()) == 2, SECONDS)
        told = Told((one, two))
        asyncio.run(load(served.port, 6, 20, 0, told))
        assert len(told.digests) == 1
        first = served.targets()
        under_way = threading.Thread(target=asyncio.run, args=[load(served.port, 6, 60, 0, told)])
        under_way.start()
        until(lambda: told.asked > 150, SECONDS)
        change(link, two)
        under_way.join()
        assert told.asked == 480, "a request was lost"
        until(lambda: all(metric(t, "tandem_serve_bundle_changes") == 1 for t in first), SECONDS)
        asyncio.run(load(served.port, 6, 20, 0, told))
        assert len(told.digests) == 2 and told.asked == 600
        answered = [metric(target, "tandem_serve_batched_total") for target in first]
        assert sum(answered) >= 600 and min(answered) > 0, "both replicas answer"

        os.kill(pid_of(first[0]), signal.SIGKILL)
        until(lambda: len(set(served.targets()) - set(first)) == 1, SECONDS)
        asyncio.run(load(served.port, 6, 20, 0, told))
        assert told.asked == 720

        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(SECONDS) in (0, 130)
        assert "Traceback" not in served.said, served.said
        with pytest.raises(OSError):
            asked(served.port, "GET", "/healthz", seconds=5)


def pid_of(target: str) -> int:
    """The process that listens there."""
    port = f"{int(target.rpartition(':')[2]):04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    (inode,) = (
        line.split()[9]
        for line in lines[1:]
        if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
    )
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()) == f"socket:[{inode}]":
                return int(descriptor.parts[2])
        except OSError:  # it has gone
            continue
    raise AssertionError(f"nobody listens at {target}")


def test_a_node_without_the_bundle_is_named_in_one_line(tmp_path: Path) -> None:
    with Served(tmp_path / "nothing") as served:
        assert served.process.wait(SECONDS) == 1
        last = served.said.strip().splitlines()[-1]
    assert re.match(r"error: node [\d.]+: .*nothing is no bundle", last), served.said
    assert "Traceback" not in served.said
