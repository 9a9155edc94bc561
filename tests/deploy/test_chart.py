"""The Helm chart: its values, and the pods that it makes of them."""

import re

import pytest

from tests.deploy.chart import (
    CHART,
    WORKLOADS,
    cluster_spec,
    environment,
    groups,
    mistake,
    needs_helm,
    of_kind,
    ray_container,
    render,
    the_workload,
    values_of,
)
from tests.deploy.conftest import ROOT

pytestmark = needs_helm
GIB = 2**30


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity in Gi."""
    return int(text.removesuffix("Gi")) * GIB


def test_a_release_brings_nothing_by_itself_and_says_so() -> None:
    assert "nothing is chosen: take a file of examples/" in mistake()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("worklod=job", "additional properties 'worklod' not allowed"),
        ("workload=jobs", "'/workload'"),
        ("job.data=a b", "'/job/data': 'a b' does not match"),
        ("job.arguments[0]=; rm -rf /", "'/job/arguments/0'"),
        ("groups[0].memory=64 Gb", "'/groups/0/memory'"),
        ("groups[0].gpu=8", "additional properties 'gpu' not allowed"),
        ("groups[0].name=Big", "'/groups/0/name'"),
        ("groups=", "workload job has no groups of workers"),
        ("groups[0].min=5", "group cpu: min 5 is above max 2"),
        ("groups[1].name=cpu", "groups of one name: cpu, cpu"),
        ("groups[0].rdma.enabled=true", "group cpu: rdma.enabled, and no GPUs"),
        ("groups[0].gpus=16", "16 GPUs a pod, and metrics ports for 8 ranks"),
        ("head.shmGiB=1", "shmGiB 1 does not hold ray.objectStoreGiB 1"),
        ("ray.objectStoreGiB=2", "shmGiB 2 does not hold ray.objectStoreGiB 2"),
        ("job.workers=2-8", "job.workers 2-8: a number, or a range as 2..8"),
    ],
)
def test_mistakes_are_said(setting: str, said: str) -> None:
    values = values_of("demo")
    if setting == "groups[1].name=cpu":
        setting = "groups[0].name=cpu,groups[1].name=cpu"
    elif setting.startswith("groups[0]"):
        setting = f"groups[0].name=cpu,groups[0].max=2,{setting}"
    if setting == "groups=":
        found = mistake(values, "--set-json=groups=[]")
    else:
        found = mistake(values, f"--set={setting}")
    assert said in found and len(found.splitlines()) <= 5, found


def test_a_service_needs_a_bundle_and_a_name_is_short() -> None:
    assert "serve.bundle is empty" in mistake(values_of("service"), "--set=serve.bundle=")
    assert "at most 47 characters" in mistake(values_of("demo"), release="a" * 48)


@pytest.mark.parametrize("example", WORKLOADS)
def test_ray_is_the_images_and_asks_for_a_token(example: str) -> None:
    spec = cluster_spec(the_workload(render(example)))
    base = (ROOT / "requirements" / "base.txt").read_text()
    assert re.search(rf"^ray\S*=={spec['rayVersion']}$", base, re.MULTILINE)
    assert spec["authOptions"] == {"mode": "token"}


def test_the_token_may_be_ones_own_or_none() -> None:
    given = cluster_spec(the_workload(render("demo", "ray.token.secret=ours")))
    assert given["authOptions"] == {"mode": "token", "secretName": "ours"}
    without = cluster_spec(the_workload(render("demo", "ray.token.enabled=false")))
    assert without["authOptions"] == {"mode": "disabled"}


@pytest.mark.parametrize("example", WORKLOADS)
def test_the_head_trains_nothing_and_leaves_time_for_a_checkpoint(example: str) -> None:
    objects = render(example)
    head, *workers = groups(objects)
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    assert not any("num-cpus" in group["rayStartParams"] for group in workers)
    pod = head["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 180
    for group in workers:  # Ray drains a node for 30 s
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    stop = ray_container(head)["lifecycle"]["preStop"]["exec"]["command"]
    assert stop[:2] == ["bash", "-c"]
    assert stop[2].strip() == (CHART / "files" / "stop-drivers.sh").read_text().strip()


@pytest.mark.parametrize("example", WORKLOADS)
def test_memory_is_shared_in_a_place_that_holds_rays_objects(example: str) -> None:
    for group in groups(render(example)):
        store = int(group["rayStartParams"]["object-store-memory"])
        pod, container = group["template"]["spec"], ray_container(group)
        (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume]
        assert shm["medium"] == "Memory"
        memory = quantity(container["resources"]["limits"]["memory"])
        assert store < quantity(shm["sizeLimit"]) < memory / 2
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_groups_grow_where_they_may_and_only_then_is_there_an_autoscaler() -> None:
    fixed = cluster_spec(the_workload(render("demo")))
    assert "enableInTreeAutoscaling" not in fixed and "autoscalerOptions" not in fixed
    head = fixed["headGroupSpec"]["template"]["spec"]
    assert head["automountServiceAccountToken"] is False
    for example in ("cluster", "run-rdma"):
        spec = cluster_spec(the_workload(render(example)))
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] < group["maxReplicas"]
            # KubeRay refuses another policy under the autoscaler's second version.
            assert "restartPolicy" not in group["template"]["spec"]


def test_one_pod_has_all_gpus_of_a_machine() -> None:
    head, gpu = groups(render("run-8-gpus"))
    limits = ray_container(gpu)["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "8" and "rdma/ib" not in limits
    assert "nvidia.com/gpu" not in ray_container(head)["resources"]["limits"]
    taints = [each["key"] for each in gpu["template"]["spec"]["tolerations"]]
    assert taints == ["nvidia.com/gpu"] and "tolerations" not in head["template"]["spec"]
    named = environment(ray_container(gpu))
    assert named["NCCL_SOCKET_IFNAME"] == named["GLOO_SOCKET_IFNAME"] == "eth0"
    other = groups(render("run-8-gpus", "worker.gpuResource=amd.com/gpu"))[1]
    assert ray_container(other)["resources"]["limits"]["amd.com/gpu"] == "8"


def test_cpus_speak_over_the_pods_network_too() -> None:
    (group,) = groups(render("demo"))[1:]
    assert environment(ray_container(group))["GLOO_SOCKET_IFNAME"] == "eth0"
    assert "NCCL_SOCKET_IFNAME" not in environment(ray_container(group))


def test_rights_to_lock_memory_come_with_rdma_alone() -> None:
    _, gpu = groups(render("run-rdma"))
    container = ray_container(gpu)
    assert container["resources"]["limits"]["rdma/ib"] == "8"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert environment(container)["NCCL_IB_HCA"] == "mlx5"
    root = (
        "groups[0].name=gpu,groups[0].gpus=8,groups[0].rdma.enabled=true,groups[0].rdma.root=true"
    )
    security = ray_container(groups(render("run-rdma", root))[1])["securityContext"]
    assert security["runAsUser"] == 0 and security["runAsNonRoot"] is False
    for example in WORKLOADS:
        for group in groups(render(example)):
            limits = ray_container(group)["resources"]["limits"]
            if not any(name.startswith("rdma/") for name in limits):
                rights = ray_container(group)["securityContext"]
                assert rights == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }


def test_a_node_as_a_whole_may_lend_its_network() -> None:
    settings = "groups[0].name=gpu,groups[0].gpus=8,groups[0].hostNetwork=true"
    (group,) = groups(render("run-8-gpus", settings + ",groups[0].interface=bond0"))[1:]
    pod = group["template"]["spec"]
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert environment(ray_container(group))["GLOO_SOCKET_IFNAME"] == "bond0"


def test_claims_are_made_once_and_mounted_everywhere() -> None:
    shared = render("shared", "storage.className=nfs")
    claims = of_kind(shared, "PersistentVolumeClaim")
    assert {claim["metadata"]["name"] for claim in claims} == {"tandem-data", "tandem-runs"}
    for claim in claims:
        assert claim["spec"]["storageClassName"] == "nfs"
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    for example in WORKLOADS:
        objects = render(example)
        assert not of_kind(objects, "PersistentVolumeClaim")
        for group in groups(objects):
            mounts = {m["name"]: m["mountPath"] for m in ray_container(group)["volumeMounts"]}
            assert mounts == {"data": "/data", "runs": "/runs", "shm": "/dev/shm"}
            volumes = group["template"]["spec"]["volumes"]
            names = {volume["name"]: volume for volume in volumes}
            assert names["data"]["persistentVolumeClaim"] == {"claimName": "tandem-data"}
    none = render("demo", "storage.data.claim=", "storage.runs.claim=")
    assert [v["name"] for v in groups(none)[1]["template"]["spec"]["volumes"]] == ["shm"]


def test_images_are_those_that_make_images_builds() -> None:
    for example, image in (("demo", "tandem:cpu"), ("run-8-gpus", "tandem:cuda")):
        objects = render(example)
        assert {ray_container(group)["image"] for group in groups(objects)} == {image}
        submitter = the_workload(objects)["spec"]["submitterPodTemplate"]["spec"]
        assert submitter["containers"][0]["image"] == image
    ours = render(
        "demo",
        "image.repository=registry.example/t",
        "image.tag=1",
        "image.pullSecrets[0].name=key",
    )
    for group in groups(ours):
        assert ray_container(group)["image"] == "registry.example/t:1"
        assert group["template"]["spec"]["imagePullSecrets"] == [{"name": "key"}]
