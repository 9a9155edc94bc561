"""The page of a search: its best trial, how all of them went, what their settings did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from losses.choices import LOSSES
from trainer.files.storage import write_whole
from trainer.live.document import NOTHING, Document
from trainer.live.drawing import Chart, Series

SETTINGS = {
    "loss.temperature": "temperature",
    "optimizer.table_learning_rate": "table learning rate",
    "optimizer.tower_learning_rate": "tower learning rate",
}


class Tried(Protocol):
    """What is shown of a trial."""

    @property
    def number(self) -> int: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def best(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def curve(self) -> tuple[float, ...]: ...
    @property
    def status(self) -> str: ...


def write_page(trials: Sequence[Tried], metric: str, preset: str, data: str, path: Path) -> None:
    """Of trials, best first."""
    page = Document("Tandem search")
    page.head(f"{len(trials)} settings of {preset}", f"data {data}, judged by {metric}")
    page.verdict(*verdict(trials, metric))
    page.heading("How the trials went")
    page.drawn(_curves(trials, metric))
    page.heading("What the settings did")
    page.drawn(*_against(trials, metric))
    page.heading("All trials")
    heads = ["trial", metric, "loss", *SETTINGS.values(), "epochs", ""]
    page.table(heads, [_row(place, trial) for place, trial in enumerate(trials)], "figures")
    write_whole(path, page.written())


def verdict(trials: Sequence[Tried], metric: str) -> list[str]:
    """The best trial, how far ahead it is, and what it is not."""
    best, good = trials[0], [trial for trial in trials if math.isfinite(trial.best)]
    said = [f"Trial {best.number} is the best: validation {metric} {best.best:.4f} "
            f"with {best.settings['loss.name']}."]  # fmt: skip
    if len(good) > 1:
        middle = sorted(trial.best for trial in good)[len(good) // 2]
        said[0] += (
            f" The next, trial {good[1].number}, reaches {good[1].best:.4f}; the middle one "
            f"{middle:.4f}."
        )
    said.append(
        "Chosen among so many on validation, it looks better there than it is: measure it on the "
        "test."
    )
    return said


def _losses(trials: Sequence[Tried]) -> list[str]:
    return list(dict.fromkeys(str(trial.settings["loss.name"]) for trial in trials))


def _curves(trials: Sequence[Tried], metric: str) -> Chart:
    names = _losses(trials)
    series = [
        Series(
            f"trial {trial.number}, {trial.settings['loss.name']}",
            list(range(1, len(trial.curve) + 1)),
            trial.curve,
            color=names.index(trial.settings["loss.name"]),
            dash=None if trial is trials[0] else (3, 3),
        )
        for trial in trials
        if trial.curve
    ]
    help = "A line a trial, a colour a loss; the best is solid. What fell behind was stopped."
    return Chart(f"{metric} on validation", help, series, xLabel="evaluation", whole=True)


def _against(trials: Sequence[Tried], metric: str) -> list[Chart]:
    """Best value against each setting that was drawn, a colour a loss."""
    charts = []
    for setting, name in SETTINGS.items():
        series = []
        for color, loss in enumerate(_losses(trials)):
            if setting == "loss.temperature" and LOSSES[loss].usual_temperature is None:  # type: ignore[index]
                continue
            of_loss = [t for t in trials if t.settings["loss.name"] == loss]
            places = [float(t.settings[setting]) for t in of_loss]
            series.append(Series(loss, places, [t.best for t in of_loss], color=color))
        help = f"Best validation {metric} of each trial."
        charts.append(Chart(f"By {name}", help, series, kind="dots", xLabel=name, logX=True))
    return [chart for chart in charts if chart.series]


def _row(place: int, trial: Tried) -> list[str | tuple[str, str]]:
    has_temperature = LOSSES[trial.settings["loss.name"]].usual_temperature is not None
    shown = {name: f"{trial.settings[name]:.3g}" for name in SETTINGS}
    if not has_temperature:
        shown["loss.temperature"] = NOTHING
    best = f"{trial.best:.4f}" if math.isfinite(trial.best) else NOTHING
    cells: list[str | tuple[str, str]] = [(str(trial.number), "name")]
    cells.append((best, "best" if place == 0 else ""))
    return [*cells, str(trial.settings["loss.name"]), *shown.values(), str(trial.epochs),
            (trial.status, "left")]  # fmt: skip
