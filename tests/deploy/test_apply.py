"""The chart, applied to Kubernetes' own API server, with KubeRay's and the operator's CRDs in it.

The server has the last word where schemas have none: rules that CRDs carry, names of ports, the
profile "restricted" of pod security, what an upgrade may change, what an uninstallation leaves.
"""

import json
from collections.abc import Iterator

import pytest

from tests.deploy.api_server import ApiServer, api_server, assets
from tests.deploy.chart import (
    CHART,
    EXAMPLES,
    Object,
    pod_templates,
    render,
    the_workload,
    values_of,
)
from tests.deploy.test_crds import CRDS, RELEASES, WAYS

RESTRICTED, PRIVILEGED = "restricted", "privileged"
NEWEST = [max((r for r in RELEASES if r.startswith(n)), default="") for n in ("kube", "prometheus")]
OLDEST = [min((r for r in RELEASES if r.startswith(n)), default="") for n in ("kube", "prometheus")]

KINDS = {"command": "Job"}
# What an upgrade sets, and what is found then.
CHANGES = {
    "RayCluster": ("ray.idleSeconds=60", '"idleTimeoutSeconds": 60'),
    "RayJob": ("job.retries=7", '"backoffLimit": 7'),
    "RayService": ("serve.arguments.batch=64", "batch: 64"),
    "Job": ("command.retries=3", '"backoffLimit": 3'),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        assets() is None, reason="no etcd and kube-apiserver in KUBEBUILDER_ASSETS, or no helm"
    ),
    pytest.mark.skipif(not CRDS.exists(), reason="no CRDs (bash deploy/schemas.sh kubernetes)"),
]


@pytest.fixture(scope="module", params=[OLDEST, NEWEST], ids=["oldest", "newest"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    programs = assets()
    assert programs is not None
    with api_server(programs, tmp_path_factory.mktemp("api")) as found:
        for release in request.param:
            for file in sorted((CRDS / release).glob("*.yaml")):
                # Too large for the annotation of a client's apply.
                found.kubectl("create", "-f", str(file))
        found.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        for profile in (RESTRICTED, PRIVILEGED):
            found.kubectl("create", "namespace", profile)
            label = f"pod-security.kubernetes.io/enforce={profile}"
            found.kubectl("label", "namespace", profile, label)
        yield found


def as_text(objects: list[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


@pytest.mark.parametrize(("example", "settings"), WAYS, ids=lambda each: str(each)[:60])
def test_every_object_is_taken_and_no_field_is_unknown(
    server: ApiServer, example: str, settings: tuple[str, ...]
) -> None:
    objects = render(example, *settings)
    given = as_text(objects)
    strictly = ("--dry-run=server", "--validate=strict", f"--namespace={RESTRICTED}")
    answer = server.kubectl("create", *strictly, "-f", "-", given=given)
    assert answer.count("created (server dry run)") == len(objects)


def test_the_server_refuses_what_is_wrong(server: ApiServer) -> None:
    (job,) = [each for each in render("demo") if each["kind"] == "RayJob"]
    job["spec"]["backofLimit"] = 1
    strictly = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
    message = server.refused(*strictly, given=as_text([job]))
    assert "unknown field" in message and "backofLimit" in message


def pods(example: str) -> list[Object]:
    """What becomes of its objects: head, workers, a run's submitter, a command's pod."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": f"pod-{number}"},
            "spec": template["spec"],
        }
        for number, template in enumerate(pod_templates(render(example)))
    ]


@pytest.mark.parametrize("example", [name for name in EXAMPLES if name != "shared"])
def test_pods_are_let_into_a_restricted_namespace(server: ApiServer, example: str) -> None:
    rdma = example == "run-rdma"
    flags = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
    given = as_text(pods(example))
    if rdma:  # locking memory is no right that such a namespace gives
        message = server.refused(*flags, f"--namespace={RESTRICTED}", given=given)
        assert 'must not include "IPC_LOCK"' in message
    namespace = PRIVILEGED if rdma else RESTRICTED
    answer = server.kubectl(*flags, f"--namespace={namespace}", given=given)
    assert answer.count("created") == len(pods(example))


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_release_is_installed_upgraded_and_uninstalled(server: ApiServer, example: str) -> None:
    where = (f"--namespace={RESTRICTED}",)
    release, chart = f"r-{example}", str(CHART)
    server.helm("install", release, chart, values_of(example), *where)
    if example == "shared":
        assert server.get("pvc", "tandem-data", RESTRICTED)["status"]["phase"] == "Pending"
        assert "TandemStalled" in json.dumps(server.get("prometheusrule", release, RESTRICTED))
    else:
        kind = KINDS.get(example) or the_workload(render(example))["kind"]
        assert server.get(kind, release, RESTRICTED)["spec"]
        change, upgraded = CHANGES[kind]
        flags = (values_of(example), f"--set={change}", *where)
        server.helm("upgrade", release, chart, *flags)
        assert upgraded in json.dumps(server.get(kind, release, RESTRICTED)["spec"])
    server.helm("uninstall", release, *where)
    left = server.kubectl("get", "pvc,rayjob,raycluster,rayservice,netpol", *where, "-o=name")
    claims = ["persistentvolumeclaim/tandem-data", "persistentvolumeclaim/tandem-runs"]
    assert left.split() == (claims if example == "shared" or claims[0] in left else [])


def test_two_runs_stand_beside_each_other(server: ApiServer) -> None:
    where = (f"--namespace={PRIVILEGED}",)
    for release, example in (("one", "demo"), ("two", "run-rdma")):
        server.helm("install", release, str(CHART), values_of(example), *where)
    found = server.kubectl("get", "rayjob", *where, "-o=name")
    assert found.split() == ["rayjob.ray.io/one", "rayjob.ray.io/two"]
    for release in ("one", "two"):
        service = server.get("service", f"{release}-discovery", PRIVILEGED)
        assert service["spec"]["selector"]["app.kubernetes.io/instance"] == release
        server.helm("uninstall", release, *where)
