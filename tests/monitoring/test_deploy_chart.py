"""The Helm chart: what it renders, held to itself, to the program, and to what KubeRay asks."""

import json
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
from cluster.train import parse_train
from tests.monitoring.chart import (
    CHART,
    DEPLOY,
    EXAMPLES,
    NAMESPACE,
    RELEASE,
    WORKLOADS,
    cluster_spec,
    environment,
    groups,
    mistake,
    needs_helm,
    of_kind,
    parsed,
    ports,
    ray_container,
    render,
    template,
    the_workload,
    values_of,
)
from tests.monitoring.conftest import ROOT

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


def test_a_service_needs_an_application_and_a_name_is_short() -> None:
    assert "serve.importPath is empty" in mistake(values_of("service"))
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


def entrypoint(*settings: str, example: str = "demo") -> list[str]:
    return shlex.split(the_workload(render(example, *settings))["spec"]["entrypoint"])


@pytest.mark.parametrize("example", ["demo", "run-8-gpus", "run-rdma"])
def test_the_runs_command_is_understood_and_goes_on_by_itself(example: str) -> None:
    program, subcommand, *flags = entrypoint(
        "job.arguments[0]=--training.epochs=3", example=example
    )
    assert program == "tandem" and subcommand in COMMANDS
    at = flags.index("--resume")
    assert flags.pop(at + 1) == "auto"
    _, parsed = parse_train(flags)
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


def test_the_service_runs_the_application() -> None:
    settings = ("serve.arguments.run=/runs/a", "serve.deployments[0].name=Recommender")
    service = the_workload(render("service", *settings))
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "shop.app:app" and application["args"] == {
        "run": "/runs/a"
    }
    assert application["deployments"] == [{"name": "Recommender"}]
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


def test_rules_are_those_of_deploy_prometheus() -> None:
    base = "monitoring.runbookBase=https://git.example/tandem/"
    (rule,) = of_kind(render("shared", base), "PrometheusRule")
    found = {group["name"]: group for group in rule["spec"]["groups"]}
    for file in ("rules.yml", "alerts.yml"):
        for group in yaml.safe_load((DEPLOY / "prometheus" / file).read_text())["groups"]:
            ours = found.pop(group["name"])
            assert ours["interval"] == "30s"
            for given, rendered in zip(group["rules"], ours["rules"], strict=True):
                if "annotations" in given:
                    address = rendered["annotations"].pop("runbook_url")
                    assert (
                        address == f"https://git.example/tandem/{given['annotations']['runbook']}"
                    )
                assert rendered == given
    assert not found
    (plain,) = of_kind(render("shared"), "PrometheusRule")
    assert "runbook_url" not in json.dumps(plain)


def test_dashboards_are_those_of_deploy_grafana() -> None:
    maps = of_kind(render("shared"), "ConfigMap")
    files = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    assert len(maps) == len(files) > 2
    for found, file in zip(maps, files, strict=True):
        assert found["data"] == {file.name: file.read_text()}
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert len(json.dumps(found)) < 2**20  # what a ConfigMap may hold


def selected(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def pod_labels(group: dict, kind: str) -> dict[str, str]:
    """With what KubeRay adds."""
    return group["template"]["metadata"]["labels"] | {"ray.io/node-type": kind}


@pytest.mark.parametrize("example", ["cluster", "demo", "run-8-gpus", "run-rdma"])
def test_prometheus_finds_the_ranks_by_the_driver_of_this_release_alone(example: str) -> None:
    objects = render(example)
    head, *workers = groups(objects)
    (service,) = of_kind(objects, "Service")
    selector = service["spec"]["selector"]
    assert selected(selector, pod_labels(head, "head"))
    assert not any(selected(selector, pod_labels(group, "worker")) for group in workers)
    others = head["template"]["metadata"]["labels"] | {"app.kubernetes.io/instance": "other"}
    assert not selected(selector, others | {"ray.io/node-type": "head"})
    (scrape,) = of_kind(objects, "ScrapeConfig")
    assert scrape["spec"]["jobName"] == "tandem"  # which the alerts speak of
    listed = ports(ray_container(head))
    urls = [sd["url"] for sd in scrape["spec"]["httpSDConfigs"]]
    host = f"{service['metadata']['name']}.{NAMESPACE}.svc"
    assert urls == [f"http://{host}:{listed[f'discovery-{i}']}/targets" for i in range(4)]
    assert [p["targetPort"] for p in service["spec"]["ports"]] == [
        f"discovery-{i}" for i in range(4)
    ]


def test_prometheus_finds_the_ranks_by_their_ports_where_there_is_no_scrape_config() -> None:
    objects = render("run-8-gpus", "monitoring.ranks=pods")
    assert not of_kind(objects, "ScrapeConfig", "Service")
    (monitor,) = of_kind(objects, "PodMonitor")
    _, gpu = groups(objects)
    assert selected(monitor["spec"]["selector"]["matchLabels"], pod_labels(gpu, "worker"))
    names = ports(ray_container(gpu))
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    assert [names[each["port"]] for each in endpoints] == list(range(9500, 9508))
    for each in endpoints:
        assert {r["targetLabel"] for r in each["relabelings"]} == {"job", "run", "rank"}


def test_prometheus_finds_rays_own_metrics() -> None:
    (monitor,) = of_kind(render("shared"), "PodMonitor")
    asked = {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]}
    for example in WORKLOADS:
        head, *workers = groups(render(example))
        assert asked <= set(ports(ray_container(head)))
        for group in (head, *workers):
            labels = group["template"]["metadata"]["labels"]
            assert selected(monitor["spec"]["selector"]["matchLabels"], labels)
            port = ports(ray_container(group))["metrics"]
            assert str(port) == group["rayStartParams"]["metrics-export-port"]


def test_the_network_is_open_to_those_who_need_it_alone() -> None:
    objects = render("cluster", "networkPolicy.clients[0].podSelector.matchLabels.role=submits")
    (policy,) = of_kind(objects, "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    for group, kind in zip(groups(objects), ("head", "worker", "worker"), strict=True):
        labels = pod_labels(group, kind)
        assert selected(policy["spec"]["podSelector"]["matchLabels"], labels)
    ours, operator, prometheus, clients = policy["spec"]["ingress"]
    assert "ports" not in ours
    assert {p["port"] for p in operator["ports"]} == {8265, 52365, 8000}
    assert clients["from"] == [{"podSelector": {"matchLabels": {"role": "submits"}}}]
    opened = [range(p["port"], p.get("endPort", p["port"]) + 1) for p in prometheus["ports"]]
    for group in groups(objects):
        for name, port in ports(ray_container(group)).items():
            if name in ("metrics", "as-metrics", "dash-metrics") or name[-1].isdigit():
                assert any(port in span for span in opened), name
    assert not any(6379 in span or 8265 in span for span in opened)
    narrow = render("cluster", "networkPolicy.prometheusNamespace=watch")
    peers = of_kind(narrow, "NetworkPolicy")[0]["spec"]["ingress"][2]["from"]
    names = peers[0]["namespaceSelector"]["matchLabels"]
    assert names == {"kubernetes.io/metadata.name": "watch"}
    assert not of_kind(render("cluster", "networkPolicy.enabled=false"), "NetworkPolicy")


def test_the_submitters_pod_is_let_in() -> None:
    objects = render("demo")
    labels = the_workload(objects)["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    (policy,) = of_kind(objects, "NetworkPolicy")
    peers = policy["spec"]["ingress"][0]["from"]
    assert selected(peers[0]["podSelector"]["matchLabels"], labels)


def test_releases_of_one_namespace_do_not_meet() -> None:
    """Two runs and what they share: no object twice."""
    names: list[tuple[str, str]] = []
    for example in ("shared", "demo", "run-8-gpus"):
        done = template(values_of(example), release=example)
        names += [(each["kind"], each["metadata"]["name"]) for each in parsed(done.stdout)]
    assert len(names) == len(set(names)) >= 14


def test_what_the_chart_says_of_itself_is_true() -> None:
    """Its first lines tell how to install an example; a version says which Tandem it is."""
    for example in EXAMPLES:
        text = (CHART / "examples" / f"{example}.yaml").read_text()
        found = re.search(r"^#   (helm install .*)$", text, re.MULTILINE)
        assert found is not None
        words = shlex.split(found.group(1))
        assert (ROOT / words[words.index("-f") + 1]) == CHART / "examples" / f"{example}.yaml"
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{chart["appVersion"]}"' in pyproject


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
