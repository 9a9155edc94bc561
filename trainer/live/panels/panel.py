"""What a panel is, and the usual forms of query.

`$run` and `$rank` are Grafana's variables, `$__rate_interval` its window; Grafana fills them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal[
    "", "s", "s ago", "bytes", "share", "rows/s", "steps/s", "rows", "nats", "steps", "requests/s"
]

RUN = 'run=~"$run"'
RANK = 'run=~"$run",rank=~"$rank"'


@dataclass(frozen=True)
class Query:
    """PromQL, and the legend of its series ({{label}} is filled in)."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One chart, or one big number."""

    title: str
    help: str
    unit: Unit
    queries: tuple[Query, ...]
    keys: tuple[str, ...] = ()
    """Keys of metrics.jsonl ("x/" stands for all of "x/..."; "@" for validation.jsonl's)."""
    kind: Literal["chart", "number"] = "chart"
    log_scale: bool = False
    limits: tuple[tuple[float, Literal["green", "orange", "red"]], ...] = ()
    """Of a number: from which value on it has which colour; below the first, and without: none."""
    words: tuple[tuple[float, str], ...] = ()
    """Of a number: what stands in a value's place."""
    source: Literal["tandem", "ray"] = "tandem"
    """Who serves the metrics: Ray's are there on a Ray cluster alone."""


@dataclass(frozen=True)
class Dashboard:
    """A page of panels; each row has a title of its own."""

    uid: str
    title: str
    help: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    of: Literal["runs", "servers"] = "runs"
    """What is chosen above it."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for _, panels in self.rows for panel in panels)


def gauge(metric: str, legend: str, labels: str = RUN, by: str = "run") -> Query:
    """A value that all ranks agree on."""
    return Query(f"max by ({by}) ({metric}{{{labels}}})", legend)


def parts(*names: str) -> Query:
    chosen = "|".join(names)
    labels = f'{RUN},part=~"{chosen}"'
    return gauge("tandem_loss_part", "{{run}} {{part}}", labels, "run, part")


def quantile_of(quantile: float, metric: str) -> Query:
    rate = f"rate({metric}_bucket{{{RANK}}}[$__rate_interval])"
    percent = f"p{round(quantile * 100)}"
    return Query(
        f"histogram_quantile({quantile}, sum by (run, rank, le) ({rate}))",
        f"{{{{run}}}} rank {{{{rank}}}} {percent}",
    )


def mean_of(metric: str, labels: str = RUN, by: str = "run", legend: str = "{{run}}") -> Query:
    """Mean of a histogram's values since the start: for what happens seldom."""
    total = f"sum by ({by}) ({metric}_sum{{{labels}}})"
    return Query(f"{total} / (sum by ({by}) ({metric}_count{{{labels}}}) > 0)", legend)
