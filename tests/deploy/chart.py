"""The Helm chart of deploy/kuberay, rendered; skipped where there is no helm."""

import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "kuberay"
SCHEMAS = ROOT / ".schemas"
EXAMPLES = sorted(file.stem for file in (CHART / "examples").glob("*.yaml"))
WORKLOADS = tuple(name for name in EXAMPLES if name not in ("shared", "command"))
RELEASE = "mine"
NAMESPACE = "recommenders"

Object = dict[str, Any]


def program(name: str) -> str | None:
    """The system's, else the one that deploy/schemas.sh brings."""
    return shutil.which(name) or shutil.which(name, path=str(SCHEMAS / "bin"))


needs_helm = pytest.mark.skipif(
    program("helm") is None, reason="helm is not installed (bash deploy/schemas.sh helm)"
)


def template(*flags: str, release: str = RELEASE) -> subprocess.CompletedProcess[str]:
    """`helm template` of the chart."""
    helm = program("helm")
    assert helm is not None
    command = [helm, "template", release, str(CHART), f"--namespace={NAMESPACE}", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@cache
def _rendered(example: str, settings: tuple[str, ...]) -> str:
    given = [f"--set={setting}" for setting in settings]
    done = template(values_of(example), *given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(example: str, *settings: str) -> list[Object]:
    """The objects of a file of examples/, with `--set` of `settings`."""
    return parsed(_rendered(example, settings))


def parsed(text: str) -> list[Object]:
    """The objects of a file of several."""
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def values_of(example: str) -> str:
    """The flag that takes a file of examples/."""
    return f"--values={CHART / 'examples' / example}.yaml"


def mistake(*flags: str, release: str = RELEASE) -> str:
    """What helm says where it refuses, without its own notes."""
    done = template(*flags, release=release)
    assert done.returncode != 0, done.stdout[-300:]
    return "\n".join(line for line in done.stderr.splitlines() if not line.startswith("level="))


def cluster_spec(workload: Object) -> Object:
    """KubeRay's cluster, of a RayCluster, a RayJob or a RayService."""
    spec = workload["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def the_workload(objects: list[Object]) -> Object:
    (found,) = of_kind(objects, "RayCluster", "RayJob", "RayService")
    return found


def groups(objects: list[Object]) -> list[Object]:
    """The head's group, then those of the workers."""
    spec = cluster_spec(the_workload(objects))
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def ray_container(group: Object) -> Object:
    (container,) = group["template"]["spec"]["containers"]
    return container


def environment(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env", [])}


def ports(container: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def pod_templates(part: Any) -> list[Object]:
    """Pod templates, wherever in the objects they are."""
    if isinstance(part, list):
        return [found for each in part for found in pod_templates(each)]
    if not isinstance(part, dict):
        return []
    if "containers" in part.get("spec", {}):
        return [part]
    return [found for each in part.values() for found in pod_templates(each)]
