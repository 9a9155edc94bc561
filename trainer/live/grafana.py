"""Grafana's dashboards, made of the panels: `python -m trainer.live.grafana`, from the root.

A test holds the files in deploy/ to what this writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from trainer.live.panels import OF_GRAFANA
from trainer.live.panels.panel import Dashboard, Panel, Unit

SCHEMA_VERSION = 39
COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
"""The one chosen above the dashboard: every Grafana has its own."""
UNITS: dict[Unit, str] = {
    "": "short",
    "s": "s",
    "bytes": "bytes",
    "share": "percentunit",
    "rows/s": "rowsps",
    "requests/s": "reqps",
    "steps/s": "ops",
    "rows": "short",
    "nats": "short",
    "steps": "short",
}


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """One dashboard, as Grafana 10 and later read it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.help,
        "tags": ["tandem"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair over all panels
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "annotations": {"list": [_restarts()] if dashboard.of == "runs" else []},
        "links": [_link(other) for other in OF_GRAFANA if other is not dashboard],
        "templating": {"list": [_datasource(), *_choices(dashboard)]},
        "panels": _panels(dashboard),
    }


def write_dashboards(folder: Path) -> None:
    """Write every dashboard as FOLDER/UID.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in OF_GRAFANA:
        text = json.dumps(dashboard_json(dashboard), indent=2) + "\n"
        (folder / f"{dashboard.uid}.json").write_text(text)


def _panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    top = 0
    for title, panels in dashboard.rows:
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "gridPos": place,
                "collapsed": False,
                "panels": [],
            }
        )
        top += 1
        columns = 6 if panels[0].kind == "number" else min(len(panels), 3)
        width, height = COLUMNS // columns, 4 if panels[0].kind == "number" else 8
        for index, panel in enumerate(panels):
            place = {
                "x": index % columns * width,
                "y": top + index // columns * height,
                "w": width,
                "h": height,
            }
            made.append(_panel(panel, len(made) + 1, place))
        top += -(-len(panels) // columns) * height
    return made


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    is_number = panel.kind == "number"
    defaults: dict[str, Any] = {"unit": UNITS[panel.unit], "custom": {}}
    if is_number:
        defaults |= {"thresholds": _thresholds(panel), "mappings": _mappings(panel)}
    if panel.unit == "share":
        defaults |= {"min": 0, "max": 1} if is_number else {"min": 0}
    if not is_number:
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 2,
            "fillOpacity": 6,
            "showPoints": "auto",
            "spanNulls": False,
            "axisLabel": panel.unit,
            "scaleDistribution": {"type": "log", "log": 10}
            if panel.log_scale
            else {"type": "linear"},
        }
    numbers = {
        "colorMode": "value",
        "graphMode": "none" if panel.words else "area",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    chart = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return {
        "id": number,
        "type": "stat" if is_number else "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": numbers if is_number else chart,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "editorMode": "code",
                "range": True,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    """Grafana's own default would have every number from 80 on red."""
    steps = [{"color": color, "value": value} for value, color in panel.limits]
    return {"mode": "absolute", "steps": [{"color": "text", "value": None}, *steps]}


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    """Words in the place of values."""
    options = {f"{value:g}": {"text": words} for value, words in panel.words}
    return [{"type": "value", "options": options}] if options else []


def _choices(dashboard: Dashboard) -> list[dict[str, Any]]:
    """What is chosen above the dashboard."""
    if dashboard.of == "servers":
        return [_variable("instance", "Server", "label_values(tandem_serve_bundle_step, instance)")]
    ranks = 'label_values(tandem_step{run=~"$run"}, rank)'
    return [_newest_run(), _variable("rank", "Rank", ranks)]


def _newest_run() -> dict[str, Any]:
    """A choice of runs, the one that moved last first: that is the one shown at first."""
    moved = "max by (run) (max_over_time(tandem_progress_timestamp_seconds[${__range_s}s]))"
    query = f"query_result(sort_desc({moved}))"
    chosen = _variable("run", "Run", query)
    del chosen["current"]
    return {**chosen, "regex": '/run="([^"]+)"/', "sort": 0}


def _datasource() -> dict[str, Any]:
    """A choice among the Prometheus servers that this Grafana knows, its default at first."""
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,  # when the dashboard is loaded
        "multi": False,
        "includeAll": False,
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice of several values, all of them at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the time range changes
        "sort": 3,
        "multi": True,
        "includeAll": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _restarts() -> dict[str, Any]:
    """A mark at each restart, on every panel."""
    return {
        "name": "Restarts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": 'changes(max by (run) (tandem_restarts_total{run=~"$run"})[1m:5s]) > 0',
        "titleFormat": "restart of {{run}}",
        "step": "5s",
    }


def _link(other: Dashboard) -> dict[str, Any]:
    return {
        "type": "link",
        "title": other.title,
        "tooltip": other.help,
        "url": f"/d/{other.uid}",
        "keepTime": True,
        "includeVars": True,
        "targetBlank": False,
        "icon": "dashboard",
        "tags": [],
        "asDropdown": False,
    }


def main(arguments: list[str]) -> int:
    write_dashboards(Path(*arguments[:1]) if arguments else Path("deploy/grafana/dashboards"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
