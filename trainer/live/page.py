"""HTML pages in one piece: style, script and data inside, nothing fetched from outside."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from trainer.live.panels import DASHBOARDS
from trainer.live.panels.panel import Panel

ASSETS = files("trainer.live") / "assets"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "


def asset(name: str) -> str:
    """Text of a file in trainer/live/assets."""
    return (ASSETS / name).read_text()


def page(
    title: str,
    body: str,
    scripts: Sequence[str],
    connect: str = "'none'",
    images: Sequence[str] = (),
) -> str:
    """A whole page.

    Args:
        connect: whom scripts may ask ("'self'" or "'none'").
        images: origins ("https://cdn.example") whose images it may show; they learn of no more
            than that.
    """
    policy = f"{POLICY}connect-src {connect}; img-src {' '.join(['data:', *images])}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{asset("page.css")}</style>
</head>
<body>
{body}
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def as_script_data(name: str, value: Any) -> str:
    """`const NAME = ...;`, safe inside a <script>."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    return f"const {name} = {text};"


def panel_rows() -> list[dict[str, Any]]:
    """The panels that metrics.jsonl and validation.jsonl can feed, by row, each once.

    What stands beside a panel on another dashboard goes to that panel's row: all that is there of a
    step's time to "Speed".
    """
    panels_by: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []
    for dashboard in DASHBOARDS:
        for title, panels in dashboard.rows:
            fed = [panel for panel in panels if panel.keys]
            if not fed:
                continue
            beside = [panels_by[panel.keys] for panel in fed if panel.keys in panels_by]
            row = beside[0] if beside else []
            if not beside:
                rows.append({"title": title, "panels": row})
            for panel in fed:
                if panel.keys not in panels_by:
                    panels_by[panel.keys] = row
                    row.append(_as_drawn(panel))
    return rows


def _as_drawn(panel: Panel) -> dict[str, Any]:
    return {
        "title": panel.title,
        "help": panel.help,
        "unit": panel.unit,
        "keys": panel.keys,
        "log": panel.log_scale,
    }
