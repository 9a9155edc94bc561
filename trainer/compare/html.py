"""One self-contained HTML page of a comparison: tables and plots drawn as SVG, no script."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Literal

from trainer.compare.plots import Point, bars, lines, scatter
from trainer.compare.results import TITLES, Comparison, Row, tables
from trainer.files.storage import write_whole

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid #d8dee4 }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left }
svg { max-width: 100%; height: auto } figure { margin: 1rem 0 } figcaption { color: #57606a }
svg text { font: 12px system-ui, sans-serif; fill: #1b1f24 }
"""


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page of `comparison` to `path`."""
    parts = [_head(comparison)]
    drawings = _drawings(comparison)
    for name, (header, rows) in tables(comparison).items():
        parts.append(f"<h2>{escape(TITLES[name])}</h2>{_table(header, rows)}")
        if name in drawings:
            parts.append(f"<figure>{drawings[name]}</figure>")
    page = "\n".join(parts)
    write_whole(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>tandem compare</title>'
        f"<style>{STYLE}</style></head><body>{page}</body></html>\n",
    )


def _head(comparison: Comparison) -> str:
    facts = comparison.facts
    return (
        f"<h1>Losses compared on {escape(Path(facts['data']).name)}</h1>"
        f"<p>{facts['users']:,} users, {facts['items']:,} items, {facts['train_rows']:,} rows in "
        f"train. Preset {escape(facts['preset'])}, {facts['epochs']} epochs, batch "
        f"{facts['batch']:,}, {facts['uniform']:,} shared uniform negatives unless a case says "
        f"otherwise. Each loss had {facts['tuning_trials']} settings to choose from on the "
        f"validation split; figures are means ± standard deviations over {facts['seeds']} seeds "
        "on the test split.</p>"
    )


def _table(header: Row, rows: list[Row]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _drawings(comparison: Comparison) -> dict[str, str]:
    """Section -> SVG."""
    losses = comparison.section("losses")
    made = {
        "losses": bars([Point(r.label, r.mean("ndcg@20"), r.deviation("ndcg@20")) for r in losses]),
        "groups": lines(
            {r.label: list(enumerate(r.group_means("ndcg@20"), 1)) for r in losses},
            "popularity group, rare to popular",
            "NDCG@20",
        ),
    }
    if comparison.section("noise"):
        made["noise"] = "".join(
            lines(curves, f"share of {what}", "recall@20")
            for what, curves in (
                ("random positives added", _noise_curves(comparison, "random_positives")),
                ("true positives taken away", _noise_curves(comparison, "removed_positives")),
            )
            if curves
        )
    if comparison.has_dislikes and comparison.section("dislikes"):
        made["dislikes"] = scatter(
            [
                (r.label, r.mean("recall@20"), r.mean("disliked@20"))
                for r in comparison.section("dislikes")
            ],
            "recall@20",
            "disliked in the top 20",
        )
    for name in ("negatives", "hardness", "clipping"):
        if comparison.section(name):
            made[name] = bars(
                [
                    Point(r.label, r.mean("ndcg@20"), r.deviation("ndcg@20"))
                    for r in comparison.section(name)
                ]
            )
    return made


def _noise_curves(
    comparison: Comparison, share: Literal["random_positives", "removed_positives"]
) -> dict[str, list[tuple[float, float]]]:
    """Loss -> (share added or removed, recall), beginning at the clean data."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for result in comparison.section("noise"):
        noise = asdict(result)[share]
        if noise:
            point = (noise, result.mean("recall@20"))
            curves.setdefault(result.loss, []).append(point)
    for result in comparison.section("losses"):
        if result.loss in curves:
            curves[result.loss].insert(0, (0.0, result.mean("recall@20")))
    return curves
