"""Containers and Kubernetes manifests, as far as they can be held to anything without a cluster."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import COMMANDS
from cluster.train import parse_train
from tests.monitoring.conftest import ROOT

DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))
MANIFESTS = sorted((DEPLOY / "kuberay").glob("*.yaml"))
FIELDS = {
    "RayCluster": {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"},
    "RayJob": {
        "entrypoint",
        "submissionMode",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "backoffLimit",
        "rayClusterSpec",
    },
}


def documents() -> list[dict[str, Any]]:
    return [each for file in MANIFESTS for each in yaml.safe_load_all(file.read_text())]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [each for each in documents() if each["kind"] in kinds]


def ray_clusters() -> list[dict[str, Any]]:
    jobs = [each["spec"]["rayClusterSpec"] for each in of_kind("RayJob")]
    return jobs + [each["spec"] for each in of_kind("RayCluster")]


def groups() -> list[dict[str, Any]]:
    return [
        group
        for spec in ray_clusters()
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_and_do_not_run_as_root(file: Path) -> None:
    text = file.read_text()
    kind = file.suffix.removeprefix(".")
    assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
    assert f"-r /tmp/requirements/{kind}.txt" in text and "--no-deps" in text
    assert (ROOT / "requirements" / f"{kind}.txt").is_file()
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000:1000"]
    assert "useradd --create-home --uid 1000 tandem" in text
    for source in re.findall(r"^COPY (?:--\S+ )?(\S+) \S+$", text, re.MULTILINE):
        assert (ROOT / source).exists()


def test_every_requirement_is_pinned() -> None:
    for file in ("base.txt", "cpu.txt", "cuda.txt"):
        lines = (ROOT / "requirements" / file).read_text().splitlines()
        named = [line for line in lines if line and not line.startswith(("#", "-r "))]
        assert all(re.search(r"==[\w.+]+$", line.split(";")[0].strip()) for line in named)


def test_compose_mounts_what_exists_and_is_open_to_this_machine_alone() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert {"ray-head", "ray-worker", "prometheus", "grafana"} == set(compose["services"])
    for service in compose["services"].values():
        assert ":latest" not in service["image"] and ":" in service["image"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            known = source in compose["volumes"] or (DEPLOY / source).exists()
            assert known, f"{source} is neither a volume nor a folder"
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_compose_is_accepted_by_docker() -> None:
    found = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("docker compose is not installed")
    file = str(DEPLOY / "compose.yaml")
    subprocess.run(["docker", "compose", "-f", file, "config", "-q"], check=True)


def test_ray_resources_have_the_fields_of_kuberay() -> None:
    """A subset of the CRDs' schemas, by hand: no field that KubeRay does not know."""
    found = of_kind("RayCluster", "RayJob")
    assert len(found) == 3
    for each in found:
        assert each["apiVersion"] == "ray.io/v1" and set(each["spec"]) <= FIELDS[each["kind"]]
    for spec in ray_clusters():
        assert set(spec) <= FIELDS["RayCluster"]
        assert spec["rayVersion"] == installed_ray()
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def installed_ray() -> str:
    base = (ROOT / "requirements" / "base.txt").read_text()
    found = re.search(r"^ray(?:\[\w+\])?==([\d.]+)$", base, re.MULTILINE)
    assert found is not None
    return found.group(1)


def test_pods_state_resources_storage_and_rights() -> None:
    claims = {each["metadata"]["name"] for each in of_kind("PersistentVolumeClaim")}
    for group in groups():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim["claimName"] in claims
    gpus = [
        g
        for g in groups()
        if "nvidia.com/gpu" in g["template"]["spec"]["containers"][0]["resources"]["limits"]
    ]
    assert len(gpus) == 2


def test_prometheus_finds_the_pods() -> None:
    (monitor,) = of_kind("PodMonitor")
    labels = monitor["spec"]["selector"]["matchLabels"]
    (port,) = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    for group in groups():
        template = group["template"]
        assert labels.items() <= template["metadata"]["labels"].items()
        ports = {p["name"]: p["containerPort"] for p in template["spec"]["containers"][0]["ports"]}
        assert str(ports[port]) == group["rayStartParams"]["metrics-export-port"]
    (service,) = of_kind("Service")
    (scrape,) = of_kind("ScrapeConfig")
    url = scrape["spec"]["httpSDConfigs"][0]["url"]
    assert url.startswith(f"http://{service['metadata']['name']}.default.svc:9480/")
    heads = [spec["headGroupSpec"]["template"]["spec"] for spec in ray_clusters()]
    for head in heads:
        assert {"name": "discovery", "containerPort": 9480} in head["containers"][0]["ports"]


def commands() -> list[str]:
    """Every `tandem ...` in these files."""
    text = re.sub(r"\\\n#\s+", " ", (DEPLOY / "compose.yaml").read_text())
    compose = re.search(r"ray-head (tandem train [^\n]*)", text)
    assert compose is not None
    return [each["spec"]["entrypoint"] for each in of_kind("RayJob")] + [compose.group(1)]


def test_commands_in_them_are_understood() -> None:
    assert len(commands()) == 3
    for command in commands():
        program, subcommand, *flags = shlex.split(command)
        assert program == "tandem" and subcommand in COMMANDS
        _, parsed = parse_train(flags)
        assert parsed.config.metrics.host == parsed.discovery_host == "0.0.0.0"
