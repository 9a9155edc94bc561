"""The Helm chart: the commands that it runs, and how they are stopped and go on."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.cli import COMMANDS
from cluster.commands.train_run import parse_train
from tests.deploy.chart import (
    CHART,
    EXAMPLES,
    RELEASE,
    Object,
    groups,
    mistake,
    needs_helm,
    ports,
    ray_container,
    render,
    the_workload,
)
from tests.deploy.conftest import ROOT
from trainer.base.mistake import Mistake
from trainer.serve.serve_arguments import ServeArguments

pytestmark = needs_helm


def entrypoint(*settings: str, example: str = "demo") -> list[str]:
    return shlex.split(the_workload(render(example, *settings))["spec"]["entrypoint"])


@pytest.mark.parametrize("example", ["demo", "run-8-gpus", "run-rdma"])
def test_the_runs_command_is_understood_and_goes_on_by_itself(example: str) -> None:
    program, subcommand, *flags = entrypoint(
        "job.arguments[0]=--training.epochs=3", example=example
    )
    assert program == "tandem" and subcommand in COMMANDS
    _, parsed = parse_train(flags)
    assert parsed.resume == "auto"
    assert parsed.out == f"/runs/{RELEASE}" and parsed.config.training.epochs == 3
    assert parsed.config.metrics.host == parsed.discovery_host == "0.0.0.0"
    objects = render(example)
    first = ports(ray_container(groups(objects)[1]))["rank-0"]
    assert parsed.config.metrics.port == first
    assert parsed.discovery_port == ports(ray_container(groups(objects)[0]))["discovery-0"]


def test_a_run_is_stopped_slowly_and_tried_again() -> None:
    spec = the_workload(render("demo", "job.queue=research", "job.deadlineSeconds=3600"))["spec"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert environment == {"RAY_JOB_STOP_WAIT_TIME_S": "180"}
    assert spec["backoffLimit"] == 5 and spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] == 3600
    assert entrypoint("job.out=s3://b/r")[4] == "--out=s3://b/r"
    labels = the_workload(render("demo", "job.queue=research"))["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "research"
    quick = the_workload(render("demo"))
    assert "kueue.x-k8s.io/queue-name" not in quick["metadata"]["labels"]
    assert "activeDeadlineSeconds" not in quick["spec"]


def applied(*settings: str) -> Object:
    """Ray Serve's application of the service."""
    service = the_workload(render("service", *settings))
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return dict(application)


def test_the_service_answers_from_a_bundle() -> None:
    """What Ray Serve imports is there, and takes what the chart gives it."""
    module = pytest.importorskip("cluster.serving.replica", reason="needs ray[serve]")
    application = applied("serve.arguments.batch=64")
    name = application["import_path"]
    assert name == f"{module.__name__}:{module.build.__name__}"
    assert application["route_prefix"] == "/" and "deployments" not in application
    built = module.build(application["args"])._bound_deployment
    assert built.num_replicas == 8 and built.name == "Recommender"
    arguments = ServeArguments(**built.init_args[0])
    assert (arguments.bundle, arguments.host) == ("/data/bundles/current", "0.0.0.0")
    assert (arguments.metrics_port, arguments.batch) == (9500, 64)
    with pytest.raises(Mistake, match="args: 'bacth': did you mean"):
        module.build({**application["args"], "bacth": 1})


def test_the_service_runs_an_application_of_ones_own() -> None:
    settings = ("serve.importPath=shop.app:app", "serve.arguments.run=/runs/a")
    application = applied(*settings, "serve.deployments[0].name=Recommender")
    assert application["import_path"] == "shop.app:app"
    assert application["args"] == {"run": "/runs/a"}
    assert application["deployments"] == [{"name": "Recommender"}]
    service = the_workload(render("service"))
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    (group,) = groups(render("service"))[1:]
    assert ports(ray_container(group))["serve"] == 8000


def test_a_command_runs_in_a_pod_that_has_the_data() -> None:
    (job,) = render("command")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (container["command"], container["args"]) == (["tandem"], ["synth", "/data/demo"])
    assert container["args"][0] in COMMANDS and container["image"] == "tandem:cpu"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/data", "/runs", "/dev/shm"}
    (gpu,) = render("command", "command.gpus=8", "command.arguments={evaluate,/runs/mine}")
    (container,) = gpu["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert container["image"] == "tandem:cuda" and container["args"] == ["evaluate", "/runs/mine"]
    assert "which tandem command?" in mistake("--set=workload=command")


def test_what_the_chart_says_of_itself_is_true() -> None:
    """Its first lines tell how to install an example; a version says which Tandem it is."""
    for example in EXAMPLES:
        text = (CHART / "examples" / f"{example}.yaml").read_text()
        found = re.search(r"^#   (helm install .*)$", text, re.MULTILINE)
        assert found is not None
        words = shlex.split(found.group(1))
        assert (ROOT / words[words.index("-f") + 1]) == CHART / "examples" / f"{example}.yaml"
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'__version__ = "{chart["appVersion"]}"' in (ROOT / "tandem.py").read_text()


def test_a_head_that_goes_asks_its_drivers_to_stop_and_waits(tmp_path: Path) -> None:
    """The preStop hook, with a driver of that name that needs a second for its checkpoint."""
    program = tmp_path / "bin" / "tandem"
    program.parent.mkdir()
    program.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(1)\n"
        "    pathlib.Path(sys.argv[2]).write_text('checkpoint')\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    out = tmp_path / "out"
    # In a process namespace of its own, as a pod's: other people's runs are not asked.
    script = (CHART / "files" / "stop-drivers.sh").read_text()
    inside = (
        f"{shlex.quote(sys.executable)} {program} train {out} >{tmp_path}/said &\nmine=$!\n"
        f"until grep -q ready {tmp_path}/said; do sleep 0.1; done\n{script}\n"
        "wait $mine; echo left $?"
    )
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "bash", "-c", inside]
    try:
        probe = subprocess.run([*alone[:4], "true"], capture_output=True)
        if probe.returncode:
            pytest.skip("process namespaces need root")
        started = time.monotonic()
        done = subprocess.run(alone, capture_output=True, text=True, timeout=60)
        assert "asking driver" in done.stdout and "left 143" in done.stdout, done.stderr
        assert out.read_text() == "checkpoint" and time.monotonic() - started >= 1
        assert other.poll() is None
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
