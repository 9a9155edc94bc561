"""A run on a real Ray cluster under faults of all kinds: python -m tests.soak_cluster MINUTES OUT

Three nodes of one CPU, two workers, RUN in an object store of which one request in so many fails
all the time. Every few seconds a fault of a random kind: a rank is killed, hangs, stands still for
a moment or gets SIGTERM; a node is killed or taken away, and another comes; the driver is killed
or told to stop, and started again by the same line; the store fails a third of its requests for a
while. After that the run is let finish, and its curve and tables are compared, bit by bit, with
those of a run to which nothing happened.

A driver that ends without having been told to is an error, and so are a step that is missing or
there twice, a run that does not go on within PROGRESS_SECONDS, and a checkpoint that is lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.cluster.nodes import Cluster, Node, descendants
from tests.cluster.runs import TrainRun, title
from tests.datasets import make_dataset
from tests.faulty_proxy import FaultyServer, faulty_server
from tests.s3 import s3_server
from tests.soak import tables
from tests.test_training import train
from trainer.files.json_files import committed, step_of
from trainer.files.line_file import read_records
from trainer.files.storage import StoragePath, storage_path
from trainer.run.folder import RunFolder, RunSpec

NODES = 3
STORE_FAILS_EVERY = 50
PROGRESS_SECONDS = 900.0
PAUSE_SECONDS = 6.0
STEP_TIMEOUT_SECONDS = 90
STEPS_AFTER = 5
FLAGS = (
    "--resume=auto",
    "--patience=600",
    f"--step-timeout={STEP_TIMEOUT_SECONDS}",
    "--checkpoint.every-steps=2",
    "--optimizer.schedule=constant",
    "--training.epochs=100000",
)


class Soak:
    """The run, what befalls it, and how often."""

    def __init__(
        self,
        cluster: Cluster,
        proxy: FaultyServer,
        data: Path,
        out: str,
        environment: dict[str, str],
    ) -> None:
        self.cluster, self.proxy, self.data, self.out = cluster, proxy, data, out
        self.environment, self.chance = environment, random.Random(0)
        self.met: Counter[str] = Counter()
        self.slowest, self.said = 0.0, ""
        self.run = self.start()
        self.faults: dict[str, Callable[[], None]] = {
            "a rank killed": lambda: self.hurt_rank(signal.SIGKILL),
            "a rank that hangs": lambda: self.hurt_rank(signal.SIGSTOP),
            "a rank that stands still for a moment": self.pause_rank,
            "SIGTERM of a rank": lambda: self.hurt_rank(signal.SIGTERM),
            "a node killed": self.kill_node,
            "a node taken away": self.drain_node,
            "the driver killed": lambda: self.end_driver(signal.SIGKILL),
            "the driver told to stop": lambda: self.end_driver(signal.SIGTERM),
            "a store that fails every third request": self.storm,
        }

    def start(self, *flags: str) -> TrainRun:
        """The same line for each start."""
        at = f"--address={self.cluster.address}"
        out: Any = self.out
        return TrainRun(self.data, out, at, *FLAGS, *flags, environment=self.environment)

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        there = committed(storage_path(f"{self.out}/checkpoints"))
        return step_of(there[-1]) if there else 0

    def wait_for_progress(self, after: int) -> None:
        """A checkpoint newer than that of step `after`."""
        started = time.monotonic()
        while self.saved() <= after:
            self.check_driver()
            waited = time.monotonic() - started
            assert waited < PROGRESS_SECONDS, f"no progress in {waited:.0f} s:\n{self.run.text}"
            time.sleep(0.5)
        self.slowest = max(self.slowest, time.monotonic() - started)

    def check_driver(self) -> None:
        status = self.run.process.poll()
        assert status is None, f"the driver ended with {status}:\n{self.run.text}"

    def worker_pids(self) -> list[int]:
        nodes = [node.process.pid for node in self.cluster.nodes]
        below = [pid for node in nodes for pid in descendants(node)]
        return [pid for pid in below if "RayTrainWorker" in title(pid)]

    def hurt_rank(self, how: signal.Signals) -> None:
        pids = self.worker_pids()
        if pids:  # none: it is starting
            os.kill(self.chance.choice(pids), how)

    def pause_rank(self) -> None:
        pids = self.worker_pids()
        if pids:
            pid = self.chance.choice(pids)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(PAUSE_SECONDS)
            os.kill(pid, signal.SIGCONT)

    def kill_node(self) -> None:
        self.replaced().kill()

    def drain_node(self) -> None:
        self.replaced().terminate()

    def replaced(self) -> Node:
        """A node that goes now; another comes."""
        node = self.chance.choice(self.cluster.nodes)
        self.cluster.nodes.remove(node)
        self.cluster.add_node()
        return node

    def end_driver(self, how: signal.Signals) -> None:
        os.kill(self.run.process.pid, how)
        status = self.run.finish()
        assert status in (-signal.SIGKILL, 128 + signal.SIGTERM), (status, self.run.text)
        self.run = self.start()

    def storm(self) -> None:
        self.proxy.every = 3
        time.sleep(15)
        self.proxy.every = STORE_FAILS_EVERY

    def befall(self, seconds: float) -> None:
        """Faults until the time is over."""
        self.wait_for_progress(0)
        deadline, before = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            time.sleep(self.chance.uniform(0, 8))
            kind = self.chance.choice(list(self.faults))
            self.check_driver()
            self.faults[kind]()
            self.met[kind] += 1
            saved = self.saved()
            assert saved >= before, "a checkpoint was lost"
            before = saved
            self.wait_for_progress(saved)
            told = f"{sum(self.met.values())}: {kind}, from step {saved} to {self.saved()}"
            print(told, flush=True)

    def finish(self) -> int:
        """Tell the run to stop, and the same line to end a few steps later; the last step."""
        os.kill(self.run.process.pid, signal.SIGTERM)
        assert self.run.finish() == 128 + signal.SIGTERM, self.run.text
        last = self.saved() + STEPS_AFTER
        self.run = self.start(f"--training.max-steps={last}")
        assert self.run.finish() == 0, self.run.text
        return last


def curve(out: StoragePath | str) -> dict[int, float]:
    """By step; a step that is there twice is an error."""
    records = read_records(RunFolder(out).metrics_file)
    found = {record["step"]: record["loss"] for record in records}
    assert len(found) == len(records), "a step was written twice"
    return found


def compare(out: str, last: int, data: Path, here: Path) -> int:
    """Train the same without faults; the number of tensors that are equal, which all are."""
    config = RunFolder(out).read_config().config
    quiet = replace(config, checkpoint=replace(config.checkpoint, every_steps=10**6))
    train(RunSpec("demo", quiet, str(data), str(here)), 2)
    ours = curve(out)
    assert list(ours) == list(range(1, last + 1)), "a step is missing or out of order"
    assert ours == curve(here), "the curve is another"
    mine, others = tables(storage_path(out)), tables(here)
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        assert torch.equal(value, others[name]), f"{name} is another"
    return len(mine)


def soak(minutes: float, folder: Path) -> dict[str, Any]:
    """The figures; AssertionError where anything was lost."""
    folder.mkdir(parents=True)
    make_dataset(folder / "data", users=80, items=60, rows=1500)
    with s3_server() as (bucket, variables):
        port = int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with faulty_server(port, STORE_FAILS_EVERY) as proxy:
            proxied = f"http://127.0.0.1:{proxy.server_address[1]}"
            environment = variables | {"AWS_ENDPOINT_URL": proxied}
            direct = os.environ["AWS_ENDPOINT_URL"]
            os.environ["AWS_ENDPOINT_URL"] = proxied  # nodes have it from here
            with Cluster() as cluster:
                os.environ["AWS_ENDPOINT_URL"] = direct
                for _ in range(NODES):
                    cluster.add_node()
                    cluster.wait_for_cpus(len(cluster.nodes))
                soaked = Soak(cluster, proxy, folder / "data", f"{bucket}/run", environment)
                with_progress = time.monotonic()
                try:
                    soaked.befall(60 * minutes)
                    last = soaked.finish()
                finally:
                    soaked.run.__exit__(None, None, None)
                seconds = time.monotonic() - with_progress
            requests = dict(proxy.met)
        equal = compare(f"{bucket}/run", last, folder / "data", folder / "whole")
    shutil.rmtree(folder)
    return {
        "faults": dict(soaked.met),
        "requests": {name or "answered": times for name, times in requests.items()},
        "steps": last,
        "seconds": round(seconds),
        "slowest_to_go_on_seconds": round(soaked.slowest),
        "tensors_equal": equal,
    }


if __name__ == "__main__":
    print(json.dumps(soak(float(sys.argv[1]), Path(sys.argv[2])), indent=1))
