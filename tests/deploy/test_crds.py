"""Every object that the chart renders, held to the schemas of whom it is for.

KubeRay's and the Prometheus operator's own CRDs, of the oldest and the newest release that the
chart is for; Kubernetes' schemas for the rest. `deploy/schemas.sh kubernetes` brings them.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.chart import (
    CHART,
    EXAMPLES,
    SCHEMAS,
    Object,
    needs_helm,
    of_kind,
    pod_templates,
    render,
)

CRDS = SCHEMAS / "crds"
RELEASES = sorted(folder.name for folder in CRDS.glob("*")) or ["none"]
OURS = ("ray.io", "monitoring.coreos.com")
KUBERNETES = "1.37"

pytestmark = [
    pytest.mark.slow,
    needs_helm,
    pytest.mark.skipif(not CRDS.exists(), reason="no CRDs (bash deploy/schemas.sh kubernetes)"),
]
# Each way that the templates can go, once.
WAYS = (
    *((example, ()) for example in EXAMPLES),
    ("cluster", ("networkPolicy.clients[0].podSelector.matchLabels.role=submits",)),
    ("demo", ("job.queue=research", "job.deadlineSeconds=60", "monitoring.ranks=pods")),
    ("demo", ("envFrom[0].secretRef.name=s3", "serviceAccount=runs", "priorityClassName=high")),
    ("demo", ("image.pullSecrets[0].name=key", "ray.token.secret=ours", "podLabels.team=search")),
    (
        "run-8-gpus",
        (
            "worker.hostNetwork=true",
            "worker.nodeSelector.zone=a",
            "head.tolerations[0].operator=Exists",
        ),
    ),
    ("shared", ("storage.className=nfs", "monitoring.runbookBase=https://git.example/tandem")),
    ("command", ("command.gpus=8", "command.tolerations[0].operator=Exists")),
    ("service", ("serve.arguments.batch=64", "serve.deployments[0].name=Recommender")),
    ("service", ("serve.importPath=shop.app:app", "serve.arguments.run=/runs/a")),
)


@cache
def crds(release: str) -> dict[tuple[str, str], jsonschema.protocols.Validator]:
    """Validators by kind and version; fields that a CRD does not know are refused, not dropped."""
    found = {}
    for file in (CRDS / release).glob("*.yaml"):
        crd = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]
        for version in crd["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = crd["names"]["kind"], f"{crd['group']}/{version['name']}"
            found[key] = jsonschema.Draft7Validator(schema)
    return found


def strict(schema: Any) -> Any:
    if isinstance(schema, dict):
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None), schema.pop("pattern", None)
        elif "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            strict(part)
    return schema


def errors(release: str, each: Object) -> list[str]:
    validator = crds(release).get((each["kind"], each["apiVersion"]))
    return [] if validator is None else [e.message for e in validator.iter_errors(each)]


@pytest.mark.parametrize("release", RELEASES)
def test_objects_are_of_their_crds(release: str) -> None:
    kinds = set()
    for example, settings in WAYS:
        for each in render(example, *settings):
            if each["apiVersion"].startswith(OURS):
                assert errors(release, each) == [], (example, settings, each["kind"])
                kinds.add(each["kind"])
    of_release = {kind for kind, _ in crds(release)}
    assert len(of_release) == 3 and of_release <= kinds


def test_a_crd_refuses_what_it_does_not_know() -> None:
    (job,) = of_kind(render("demo"), "RayJob")
    job["spec"]["backofLimit"] = 1
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    newest = max(release for release in RELEASES if release.startswith("kuberay"))
    found = " ".join(errors(newest, job))
    assert "'backofLimit' was unexpected" in found and "0 is not of type 'string'" in found


def test_the_crds_are_of_the_releases_that_the_chart_names() -> None:
    names = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    for key, name in (
        ("tandem/kuberay", "kuberay"),
        ("tandem/prometheus-operator", "prometheus-operator"),
    ):
        least = names[key].removeprefix(">= ")
        assert f"{name}-v{least}" in RELEASES
        assert len([release for release in RELEASES if release.startswith(name)]) == 2


@cache
def kubernetes_validate() -> Any:
    folder = str(SCHEMAS / "python")
    sys.path.append(folder)
    try:
        return pytest.importorskip(
            "kubernetes_validate", reason="bash deploy/schemas.sh kubernetes"
        )
    finally:
        sys.path.remove(folder)


def test_kubernetes_own_objects_are_of_its_schemas() -> None:
    validate = kubernetes_validate().validate
    kinds = set()
    for example, settings in WAYS:
        for each in render(example, *settings):
            if not each["apiVersion"].startswith(OURS):
                validate(each, KUBERNETES, strict=True)
                kinds.add(each["kind"])
    assert kinds == {"ConfigMap", "Job", "NetworkPolicy", "PersistentVolumeClaim", "Service"}


@pytest.mark.parametrize("example", [name for name in EXAMPLES if name != "shared"])
def test_pods_are_of_kubernetes_schemas(example: str) -> None:
    """What KubeRay makes pods of; its CRDs know pods, too, of its own time."""
    for template in pod_templates(render(example)):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": template["spec"],
        }
        kubernetes_validate().validate(pod, KUBERNETES, strict=True)


def test_ways_name_examples_that_there_are() -> None:
    assert {example for example, _ in WAYS} == set(EXAMPLES)
    assert Path(CHART / "templates" / "workload.yaml").is_file()
