"""What charts of the pages show, as plain data; assets/charts.js draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainer.live.panels.panel import Unit

Value = float | None
Level = tuple[str, float]
"""Name and height of a straight line across a chart."""


@dataclass(frozen=True)
class Series:
    """Values at places, the ends of their intervals where there are some."""

    name: str
    x: Sequence[float]
    y: Sequence[Value]
    low: Sequence[Value] | None = None
    high: Sequence[Value] | None = None
    color: int = 0
    dash: tuple[int, ...] | None = None
    points: bool | Literal["only"] = False


@dataclass(frozen=True)
class Chart:
    """One chart in a card."""

    title: str
    help: str
    series: Sequence[Series]
    unit: Unit = ""
    kind: Literal["", "dots"] = ""
    xLabel: str = "step"
    xNames: Sequence[str] | None = None
    """Of the places 0, 1, ..., where they are no numbers."""
    log: bool = False
    logX: bool = False
    whole: bool = False
    """Places are whole numbers."""
    levels: Sequence[Level] = ()
    marks: Sequence[float] = ()
    """Places marked by an upright line."""

    def as_drawn(self) -> dict[str, Any]:
        levels = [{"name": name, "y": y} for name, y in self.levels]
        return _finite({**asdict(self), "levels": levels})


@dataclass(frozen=True)
class Bars:
    """Lengths by name, one below the other, from zero."""

    title: str
    help: str
    names: Sequence[str]
    values: Sequence[float]
    half_widths: Sequence[float] | None = None
    """Of their intervals."""
    best: int | None = None
    unit: Unit = ""
    levels: Sequence[Level] = ()

    def as_drawn(self) -> dict[str, Any]:
        one: dict[str, Any] = {"name": "", "names": self.names, "y": self.values}
        if self.half_widths is not None:
            pairs = list(zip(self.values, self.half_widths, strict=True))
            one |= {"low": [v - h for v, h in pairs], "high": [v + h for v, h in pairs]}
        if self.best is not None:
            one["best"] = self.best
        levels = [{"name": name, "y": y} for name, y in self.levels]
        said = {"kind": "bars", "title": self.title, "help": self.help, "unit": self.unit}
        return _finite({**said, "series": [one], "levels": levels})


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
