"""The commands of compose.yaml and of the chart, run here, with their Prometheus."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from cluster.workers.session import short_temp_folder
from tests.cluster.nodes import RAY, Node, authentication, wait_for_port
from tests.cluster.runs import SMALL
from tests.deploy.chart import DEPLOY, RELEASE, cluster_spec, needs_helm, render, the_workload
from tests.monitoring.conftest import needs
from tests.monitoring.two_ranks import Reader, free_port
from trainer.live.prometheus import Prometheus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TANDEM = f"{sys.executable} -m cluster.cli"
SERVICE_SECONDS = 400.0


@dataclass(frozen=True)
class Cluster:
    """A head and a worker as the files start them: `places` is what stands for their names."""

    places: Mapping[str, str]
    dashboard: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of a command in the head's container: there Ray finds its own cluster."""
        found = {"RAY_ADDRESS": self.places["ray-head:6379"], "RAY_AUTH_MODE": "disabled"}
        return os.environ | found


@contextmanager
def cluster(head: str, worker: str) -> Iterator[Cluster]:
    """Run two `ray start` commands on this one machine: other ports, and none open to others."""
    folder = Path(tempfile.mkdtemp(prefix="deploy-", dir=short_temp_folder()))
    port, dashboard_port = free_port(), free_port()
    places = {"ray-head:6379": f"127.0.0.1:{port}"}
    own = {"port": port, "dashboard-host": "127.0.0.1", "metrics-export-port": None}
    started = Node(
        *flags(head, own),
        f"--dashboard-port={dashboard_port}",
        f"--temp-dir={folder}",
        environment=os.environ | authentication(None),
    )
    nodes = [started]
    try:
        wait_for_port("127.0.0.1", port, started.process)
        found = Cluster(places, f"http://127.0.0.1:{dashboard_port}", folder)
        wait_for_nodes(found, nodes)
        joined = {"address": places["ray-head:6379"], "metrics-export-port": None}
        nodes.append(Node(*flags(worker, joined), environment=os.environ | authentication(None)))
        wait_for_nodes(found, nodes)
        yield found
    finally:
        for node in reversed(nodes):
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_nodes(ray: Cluster, nodes: list[Node]) -> None:
    """As KubeRay does before it submits a job: the head alone has no CPUs."""
    deadline = time.monotonic() + SERVICE_SECONDS
    while True:
        try:
            with urlopen(f"{ray.dashboard}/nodes?view=summary", timeout=10) as answer:
                summary = json.load(answer)["data"]["summary"]
        except (OSError, ValueError):  # it starts
            summary = []
        alive = [node for node in summary if node["raylet"].get("state") == "ALIVE"]
        if len(alive) == len(nodes):
            return
        for node in nodes:
            assert node.process.poll() is None, node.said
        assert time.monotonic() < deadline, f"{len(alive)} of {len(nodes)} Ray nodes are there"
        time.sleep(1)


def flags(command: str, changed: Mapping[str, str | int | None]) -> list[str]:
    """The flags of a `ray start`, those in `changed` with that value; None: a free port."""
    ray, start, *given = shlex.split(command)
    assert (ray, start) == ("ray", "start")
    names = {flag.removeprefix("--").partition("=")[0] for flag in given}
    assert "block" in names and set(changed) <= names
    kept = [f for f in given if f.removeprefix("--").partition("=")[0] not in (*changed, "block")]
    values = {name: value or free_port() for name, value in changed.items()}
    return kept + [f"--{name}={value}" for name, value in values.items()]


def on_this_machine(command: str, data: str, out: Path, run: str = "/runs/demo") -> str:
    """A `tandem train ...` of the files on these data, small."""
    for name, place in (("/data/demo", data), (run, str(out))):
        assert name in command
        command = command.replace(name, place)
    # On ports that nobody has.
    command = re.sub(r"--(metrics|discovery).port=\d+", "", command)
    small = shlex.join((*SMALL, "--discovery-port=0"))
    return f"{TANDEM} {command.removeprefix('tandem ')} {small}"


def in_compose() -> tuple[dict[str, str], str]:
    """The services' commands by name, and the training that the file's first lines tell of."""
    text = (DEPLOY / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    found = re.search(r"ray-head (tandem train [^\n]*)", re.sub(r"\\\n#\s+", " ", text))
    assert found is not None
    check = shlex.join(services["ray-head"]["healthcheck"]["test"][1:])
    starts = {name: services[name]["command"] for name in ("ray-head", "ray-worker")}
    return {**starts, "health": check}, found.group(1)


@needs("prometheus")
def test_composes_commands_train_and_its_prometheus_reads_them(data: str, tmp_path: Path) -> None:
    commands, train = in_compose()
    endless = on_this_machine(train, data, tmp_path / "run") + " --training.epochs=100000"
    log = tmp_path / "train.log"
    with cluster(commands["ray-head"], commands["ray-worker"]) as ray, log.open("w") as output:
        health = commands["health"].replace("ray-head:6379", ray.places["ray-head:6379"])
        program, *rest = shlex.split(health)
        assert program == "ray"
        subprocess.run([RAY, *rest], env=ray.environment, check=True, timeout=120)
        driver = subprocess.Popen(
            shlex.split(endless), env=ray.environment, stdout=output, stderr=subprocess.STDOUT
        )
        prometheus = None
        try:
            discovery = wait_for(driver, log, r"metrics: http://[^/]+:(\d+)/targets")
            config = (DEPLOY / "prometheus" / "prometheus.compose.yml").read_text()
            config = config.replace("ray-head:9480", f"127.0.0.1:{discovery}")
            config = config.replace("/ray/", f"{ray.folder}/")
            for rules in ("rules.yml", "alerts.yml"):
                config = config.replace(f"- {rules}", f"- {DEPLOY / 'prometheus' / rules}")
            prometheus = Prometheus(config, tmp_path / "prometheus", free_port())
            reader = Reader(prometheus, lambda: log.read_text()[-3000:])
            reader.wait(lambda: len(reader.query('up{job="tandem"} == 1')) == 2, SERVICE_SECONDS)
            reader.wait(lambda: len(reader.query('up{job="ray"} == 1')) >= 2)  # and Ray's own parts
            reader.wait(lambda: bool(reader.query("run:tandem_examples:rate1m > 0")))
            driver.terminate()
            assert driver.wait(timeout=SERVICE_SECONDS) == 143
        finally:
            driver.kill()
            if prometheus is not None:
                prometheus.close()
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def wait_for(process: subprocess.Popen, log: Path, pattern: str) -> str:
    reader_free = Reader(None, log.read_text)  # type: ignore[arg-type]
    reader_free.wait(
        lambda: re.search(pattern, log.read_text()) is not None or process.poll() is not None,
        SERVICE_SECONDS,
    )
    found = re.search(pattern, log.read_text())
    assert found is not None, log.read_text()
    return found.group(1)


def submitted(ray: Cluster, entrypoint: str) -> subprocess.CompletedProcess[str]:
    """What KubeRay's submitter runs, once the head's agent takes jobs: it waits for that, too."""
    submit = [str(RAY), "job", "submit", f"--address={ray.dashboard}", "--"]
    deadline = time.monotonic() + SERVICE_SECONDS
    while True:
        done = subprocess.run(
            [*submit, *shlex.split(entrypoint)],
            env=ray.environment,
            capture_output=True,
            text=True,
            timeout=SERVICE_SECONDS,
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def as_kuberay_starts(params: Mapping[str, str], first: str) -> str:
    """`ray start` as the operator writes it: the group's parameters, and --block."""
    return " ".join(["ray start", first, "--block", *(f"--{k}={v}" for k, v in params.items())])


@needs_helm
def test_the_charts_job_trains_to_its_end(data: str, tmp_path: Path) -> None:
    """The operator's head, workers and submitter, by hand."""
    job = the_workload(render("demo"))
    spec = cluster_spec(job)
    (group,) = spec["workerGroupSpecs"]
    head = as_kuberay_starts(spec["headGroupSpec"]["rayStartParams"], "--head --port=6379")
    worker = as_kuberay_starts(group["rayStartParams"], "--address=ray-head:6379")
    out = tmp_path / "run"
    entrypoint = on_this_machine(job["spec"]["entrypoint"], data, out, f"/runs/{RELEASE}")
    with cluster(head, worker) as ray:
        done = submitted(ray, entrypoint)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert json.loads((out / "summary.json").read_text())["workers"] == 2
