"""Dashboards, alerts and declared metrics fit together; no Prometheus is needed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.conftest import ROOT
from trainer.live.grafana import DATASOURCE, dashboard_json
from trainer.live.panels import OF_GRAFANA
from trainer.observe.declared import METRICS, SERVER_METRICS

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
NAME = re.compile(r"\b(?:(?:run|rank):)?(?:tandem|ray)_\w+(?::\w+)?")
SUFFIX = re.compile(r"_(bucket|sum|count)$")
RECORD = re.compile(r"record: (\S+)")
ALL = (*METRICS, *SERVER_METRICS)
OF_RAY = {"ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total"}


def rules_text() -> str:
    return "".join((PROMETHEUS / name).read_text() for name in ("rules.yml", "alerts.yml"))


def names_in(text: str) -> set[str]:
    """Metric names, histograms without their suffixes, rules under their recorded names."""
    histograms = {metric.name for metric in ALL if metric.kind == "histogram"}
    found = set(NAME.findall(text))
    return {SUFFIX.sub("", n) if SUFFIX.sub("", n) in histograms else n for n in found}


def queries() -> str:
    return "\n".join(q.expr for d in OF_GRAFANA for p in d.panels for q in p.queries)


def test_no_query_and_no_rule_names_a_metric_that_is_not_declared() -> None:
    declared = {metric.name for metric in ALL} | OF_RAY
    recorded = set(RECORD.findall(rules_text()))
    assert names_in(queries()) - declared - recorded == set()
    expressions = re.sub(r"record:.*|name:.*|alert:.*|#.*|summary:.*", "", rules_text())
    assert names_in(expressions) - declared - recorded == set()


def test_every_declared_metric_is_on_a_panel_or_an_alert() -> None:
    used = names_in(queries()) | names_in(rules_text())
    assert {metric.name for metric in ALL} - used == set()


def test_every_recorded_rule_is_used() -> None:
    alerts = (PROMETHEUS / "alerts.yml").read_text()
    assert set(RECORD.findall(rules_text())) - names_in(queries() + alerts) == set()


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    alerts = (PROMETHEUS / "alerts.yml").read_text()
    named = re.findall(r"alert: (\w+)", alerts)
    runbook = (ROOT / "docs" / "runbooks" / "alerts.md").read_text()
    assert len(named) >= 7
    assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == named
    for name in named:
        assert f"runbook: docs/runbooks/alerts.md#{name.lower()}\n" in alerts
        assert f"alertname: {name}" in (PROMETHEUS / "tests.yml").read_text()


def test_panels_that_the_runbook_names_exist() -> None:
    runbook = (ROOT / "docs" / "runbooks" / "alerts.md").read_text()
    named = {" ".join(name.split()) for name in re.findall(r'"([^"]+)"', runbook)}
    assert len(named) > 10
    assert named - {panel.title for d in OF_GRAFANA for panel in d.panels} == set()


@pytest.mark.parametrize("dashboard", OF_GRAFANA, ids=lambda dashboard: dashboard.uid)
def test_the_files_are_what_the_panels_make(dashboard: Any) -> None:
    written = json.loads((GRAFANA / "dashboards" / f"{dashboard.uid}.json").read_text())
    assert written == dashboard_json(dashboard), "run: python -m trainer.live.grafana"


@pytest.mark.parametrize("path", sorted((GRAFANA / "dashboards").glob("*.json")), ids=str)
def test_dashboards_have_the_shape_grafana_reads(path: Path) -> None:
    """The parts of Grafana's dashboard schema that these dashboards use, checked by hand."""
    dashboard = json.loads(path.read_text())
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", dashboard["uid"])
    assert 36 <= dashboard["schemaVersion"] <= 41
    assert dashboard["title"] and dashboard["time"].keys() == {"from", "to"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        check_place(panel["gridPos"], taken)
        if panel["type"] != "row":
            check_panel(panel)
    datasource, *variables = dashboard["templating"]["list"]
    assert datasource["type"] == "datasource" and datasource["query"] == "prometheus"
    assert datasource["name"] == "datasource" and not datasource["multi"]
    for variable in variables:
        assert variable["type"] == "query" and variable["multi"] and variable["includeAll"]
        assert variable["datasource"] == DATASOURCE
    names = [variable["name"] for variable in variables]
    chosen = {name for name in ("run", "rank", "instance") if f"${name}" in path.read_text()}
    assert names in (["run", "rank"], ["instance"]) and chosen == set(names)
    if names == ["instance"]:
        return
    newest = variables[0]
    assert newest["query"]["query"].startswith("query_result(sort_desc(") and newest["sort"] == 0
    assert "current" not in newest, "the first that the query finds is the one shown"


def test_numbers_are_coloured_by_their_own_limits_alone() -> None:
    """Grafana's default has every number from 80 on red: time left, restarts, ranks."""
    numbers = {
        panel["title"]: panel["fieldConfig"]["defaults"]
        for file in (GRAFANA / "dashboards").glob("*.json")
        for panel in json.loads(file.read_text())["panels"]
        if panel["type"] == "stat"
    }
    colours = {
        title: [step["color"] for step in found["thresholds"]["steps"]]
        for title, found in numbers.items()
    }
    assert colours["Time left"] == ["text"] and colours["Restarts"] == ["text", "orange"]
    assert colours["Ranks up"] == ["text", "red", "green"]
    assert numbers["Finished"]["mappings"][0]["options"]["1"] == {"text": "finished"}


def test_no_dashboard_names_a_data_source_of_one_grafana() -> None:
    """They were found empty in every Grafana but ours."""
    for file in (GRAFANA / "dashboards").glob("*.json"):
        source = re.compile(r'"datasource": {\s*"type": "prometheus",\s*"uid": "([^"]*)"')
        uids = set(source.findall(file.read_text()))
        assert uids == {"${datasource}"}


def check_place(place: dict[str, int], taken: set[tuple[int, int]]) -> None:
    assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] >= 1
    across = range(place["x"], place["x"] + place["w"])
    cells = {(x, y) for x in across for y in range(place["y"], place["y"] + place["h"])}
    assert not cells & taken, "panels overlap"
    taken |= cells


def check_panel(panel: dict[str, Any]) -> None:
    assert panel["type"] in ("timeseries", "stat")
    assert panel["title"] and panel["description"].endswith(".")
    assert panel["datasource"] == DATASOURCE
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert [target["refId"] for target in panel["targets"]] == ["A", "B"][: len(panel["targets"])]
    assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_provisioning_names_the_datasource_and_the_folder_that_compose_mounts() -> None:
    datasource = (GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    provider = (GRAFANA / "provisioning" / "dashboards" / "tandem.yaml").read_text()
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    assert "uid: tandem-prometheus" in datasource
    folder = re.search(r"path: (\S+)", provider)
    assert folder is not None and f"grafana/dashboards:{folder.group(1)}" in compose
