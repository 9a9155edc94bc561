"""The Helm chart: who finds and reaches whom; what Prometheus and Grafana are given."""

import json

import pytest
import yaml

from tests.deploy.chart import (
    DEPLOY,
    NAMESPACE,
    WORKLOADS,
    groups,
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

pytestmark = needs_helm


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
