"""Two real ranks behind a real service discovery, read by a real Prometheus; with faults."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainer.live.prometheus as local
from cluster.workers.service_discovery import ServiceDiscovery
from trainer.live.prometheus import Prometheus, make_config

INTERVAL_SECONDS = 1
START_SECONDS = 300.0  # torchrec's import, on a machine with other work
# The alerts' patience, cut so that a test can see it end.
HURRIED = {
    "> 300": "> 8",
    "for: 30s": "for: 3s",
    "for: 2m": "for: 5s",
    "[1m]": "[10s]",
    "[10m]": "[3m]",  # longer than a restart takes on a busy machine
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class Reader:
    """Asks a Prometheus; `output` is what to show where a wait is in vain."""

    prometheus: Prometheus
    output: Callable[[], str]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's result. An error is one of ours, and fails."""
        return self._get("query", query=expression)["result"]

    def value(self, expression: str) -> float:
        """The first series' value, waiting for a scrape that came in time."""
        self.wait(lambda: bool(self.query(expression)))
        found = self.query(f"last_over_time(({expression})[1m:1s])")
        return float(found[0]["value"][1])

    def firing(self) -> set[str]:
        found = self.query('ALERTS{alertstate="firing"}')
        return {series["metric"]["alertname"] for series in found}

    def wait(self, until: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, f"not within {seconds} s; {self.output()}"
            time.sleep(0.5)

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        url = f"{self.prometheus.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]


@dataclass
class Scraped(Reader):
    """A run in training and the Prometheus that reads it."""

    ranks: list[subprocess.Popen]
    discovery: ServiceDiscovery
    folder: Path


@contextmanager
def hurried_rules(folder: Path) -> Iterator[None]:
    """Copies of the rules with less patience, for the Prometheus started in the body."""
    for name in ("rules.yml", "alerts.yml"):
        text = (local.RULES / name).read_text().replace("interval: 5s", "interval: 1s")
        for slow, quick in HURRIED.items():
            text = text.replace(slow, quick)
        (folder / name).write_text(text)
    before, local.RULES = local.RULES, folder
    try:
        yield
    finally:
        local.RULES = before


@contextmanager
def scraped_run(data: str, folder: Path) -> Iterator[Scraped]:
    """Start everything, wait for the first values, end everything."""
    ranks: list[subprocess.Popen] = []
    with ServiceDiscovery("run-a", port=0) as discovery:
        with hurried_rules(folder):
            config = make_config([discovery.url], str(folder / "no-ray.json"), INTERVAL_SECONDS)
            prometheus = Prometheus(config, folder / "prometheus", free_port())
        try:
            ranks.extend(start_ranks(data, folder))

            def output() -> str:
                return "\n".join(file.read_text()[-1500:] for file in folder.glob("rank-*.log"))

            scraped = Scraped(prometheus, output, ranks, discovery, folder)
            announce(scraped)
            yield scraped
        finally:
            for rank in ranks:
                rank.send_signal(signal.SIGCONT)
                rank.kill()
                rank.wait()
            prometheus.close()


def announce(scraped: Scraped) -> None:
    """Tell the discovery each rank's address, and wait until both are read."""
    for rank in (0, 1):
        file = scraped.folder / f"address-{rank}"
        scraped.wait(file.exists, seconds=START_SECONDS)
        scraped.discovery.set_target(rank, file.read_text())
        file.unlink()
    scraped.wait(lambda: len(scraped.query("up == 1 and tandem_step > 0")) == 2, START_SECONDS)


def start_ranks(data: str, folder: Path) -> list[subprocess.Popen]:
    port = free_port()
    started = []
    for rank in (0, 1):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.monitoring.worker", data, str(folder)]
        log = (folder / f"rank-{rank}.log").open("a")
        started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return started
