"""`tandem report RUN [RUN...]`: plots and settings of runs, side by side, in one HTML file."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.files.storage import StoragePath, storage_path, write_whole
from trainer.live.page import as_script_data, asset, page, panel_rows
from trainer.live.runs import read_run

TITLE = "Tandem report: "
PAGE_HEAD_BYTES = 4096
"""The page's title is within them."""


@dataclass(frozen=True)
class ReportArguments:
    """One self-contained HTML page: plots, evaluation and settings of runs, side by side."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders or URIs of runs."""
    out: str | None = None
    """File to write; RUN/report.html of the first run if left out."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise Mistake("which run? tandem report RUN [RUN ...]")
        if "" in self.runs or self.out == "":
            raise Mistake(f"{'--out' if self.out == '' else 'RUN'} is empty")


def report(arguments: ReportArguments) -> StoragePath:
    """Write the page and say where it is; returns its path.

    Raises:
        Mistake: where one of the folders is no run, or the page's place is taken.
    """
    out = _free_place(arguments)
    runs = [read_run(path) for path in arguments.runs]
    from trainer.report.norms import norms_by_popularity  # torch: after the mistakes are told

    _name_apart(runs, arguments.runs)
    for run, path in zip(runs, arguments.runs, strict=True):
        run["norms"] = norms_by_popularity(storage_path(path), storage_path(run["data"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, report_html(runs))
    say(out)
    return out


def _free_place(arguments: ReportArguments) -> StoragePath:
    """Where the page goes. Raises Mistake where something else than a report is already."""
    if arguments.out is None:
        out = storage_path(arguments.runs[0]) / "report.html"
    else:
        out = storage_path(arguments.out)
    if isinstance(out, Path) and out.is_symlink() and not out.exists():
        raise Mistake(f"{out} is a link to what is not there: choose another --out, or remove it")
    if not out.exists():
        above = [each for each in out.parents if each.exists()] if isinstance(out, Path) else []
        if above and not above[0].is_dir():
            raise Mistake(f"{out} cannot be written: {above[0]} is no folder")
        return out
    if not out.is_file():
        raise Mistake(f"{out} is no file: name one to write, such as {out}/report.html")
    with out.open("rb") as stream:
        if TITLE.encode() not in stream.read(PAGE_HEAD_BYTES):
            raise Mistake(f"{out} is there already and is no report: choose another --out")
    return out


def report_html(runs: list[dict[str, Any]]) -> str:
    """The page of runs as `read_run` gives them, with "norms" added."""
    title = " and ".join(run["name"] for run in runs)
    body = f"""<header><h1>{html.escape(title)}</h1>
<div class="state">{html.escape(_subtitle(runs))}</div></header>
{_summary_table(runs)}
<main id="panels"></main>
<h2>Settings</h2>
<div class="card wide">{_settings_table(runs)}</div>"""
    scripts = [
        as_script_data("DATA", {"runs": runs, "rows": panel_rows()}),
        asset("charts.js"),
        asset("panels.js"),
        asset("report.js"),
    ]
    return page(f"{TITLE}{title}", body, scripts)


def _name_apart(runs: list[dict[str, Any]], paths: tuple[str, ...]) -> None:
    """Runs of the same folder name are told apart by their paths."""
    names = [run["name"] for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = path


def _subtitle(runs: list[dict[str, Any]]) -> str:
    presets = ", ".join(dict.fromkeys(run["preset"] for run in runs))
    data = ", ".join(dict.fromkeys(run["data"] for run in runs))
    return f"preset {presets}, data {data}"


def _summary_table(runs: list[dict[str, Any]]) -> str:
    """What a reader wants first: a column a run."""
    rows: list[tuple[str, list[str]]] = [
        ("State", [_state(run["now"]) for run in runs]),
        ("Steps", [f"{run['now']['step']:,}" for run in runs]),
        ("Duration of the last start", [_seconds(run["summary"]) for run in runs]),
        ("Last loss", [_number(run["now"]["loss"], ".4f") for run in runs]),
        (
            "Last throughput, rows/s",
            [_number(run["now"]["examples_per_second"], ",.0f") for run in runs],
        ),
        ("Ranks", [" → ".join(_changes(run["starts"])) for run in runs]),
        ("Restarts", [str(len(run["starts"]) - 1) for run in runs]),
    ]
    if any(run["start_from"] for run in runs):
        rows.append(("Started from", [_origin(run["start_from"]) for run in runs]))
    for split, values in _splits(runs):
        for metric in _headline(values):
            cells = [_with_baseline(each, metric) for each in values]
            rows.append((f"{metric}, {split}", cells))
    return f'<h2>Summary</h2><div class="card wide">{_table(runs, rows)}</div>'


def _origin(start: dict[str, Any] | None) -> str:
    return "–" if start is None else f"{start['run']}, step {start['step']:,}"


def _state(now: dict[str, Any]) -> str:
    return f"{now['phase']}: {now['cause']}" if now["cause"] else str(now["phase"])


def _settings_table(runs: list[dict[str, Any]]) -> str:
    """Every setting, those that differ between the runs marked."""
    flat = [
        {
            f"{section}.{name}": value
            for section, fields in run["config"].items()
            for name, value in fields.items()
        }
        for run in runs
    ]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = [(name, [str(settings.get(name, "–")) for settings in flat]) for name in names]
    rows += [
        (f"version of {name}", [run["versions"].get(name, "–") for run in runs])
        for name in runs[0]["versions"]
    ]
    return _table(runs, rows, mark=True)


def _table(
    runs: list[dict[str, Any]], rows: list[tuple[str, list[str]]], mark: bool = False
) -> str:
    several = len(runs) > 1
    heads = "".join(f"<th>{html.escape(run['name'])}</th>" for run in runs) if several else ""
    lines = [f'<tr><th class="name"></th>{heads}</tr>'] if several else []
    for name, cells in rows:
        kind = ' class="differs"' if mark and len(set(cells)) > 1 else ""
        made = "".join(f"<td{kind}>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><td class="name">{html.escape(name)}</td>{made}</tr>')
    return f"<table>{''.join(lines)}</table>"


def _splits(runs: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """evaluation.json's splits: (split, its record in each run, empty where there is none)."""
    records = [run["evaluation"] or {} for run in runs]
    splits = dict.fromkeys(split for record in records for split in record)
    return [(split, [record.get(split, {}) for record in records]) for split in splits]


def _headline(values: list[dict[str, Any]]) -> list[str]:
    """Recall and NDCG at 20, or at the cut-off nearest to it."""
    names = dict.fromkeys(name for each in values for name in each if "@" in name)
    chosen = []
    for metric in ("recall", "ndcg"):
        cut_offs = [int(n.split("@")[1]) for n in names if n.startswith(f"{metric}@")]
        if cut_offs:
            chosen.append(f"{metric}@{min(cut_offs, key=lambda k: abs(k - 20))}")
    return chosen


def _with_baseline(values: dict[str, Any], metric: str) -> str:
    if metric not in values:
        return "–"
    baseline = values.get("popularity", {}).get(metric)
    text = f"{values[metric]:.4f}"
    return text if baseline is None else f"{text} (popularity {baseline:.4f})"


def _changes(starts: list[dict[str, Any]]) -> list[str]:
    sizes = [str(start["world_size"]) for start in starts]
    return [size for index, size in enumerate(sizes) if index == 0 or size != sizes[index - 1]]


def _seconds(summary: dict[str, Any] | None) -> str:
    if summary is None or "seconds" not in summary:  # it failed
        return "–"
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
