"""The config's `metrics` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from trainer.base.address import LAST_PORT
from trainer.base.mistake import require
from trainer.base.typed import Range, check
from trainer.observe.trackers.choices import TrackerName


@dataclass(frozen=True)
class MetricsConfig:
    """Each rank's Prometheus endpoint, and who else is told of metrics.jsonl."""

    enabled: bool = True
    """Serve metrics while training."""
    host: str = "127.0.0.1"
    """Address listened on; set 0.0.0.0 to let other machines scrape it."""
    port: Annotated[int, Range(least=0, most=LAST_PORT)] = 0
    """Port of each machine's first rank; its other ranks take the next ones. 0: any free port."""
    advertise: str | None = None
    """Address that Prometheus is told in place of `host`, where it reaches the machine by another
    (the same on all machines, so for runs on one). Left out: found out."""
    track: Annotated[
        tuple[TrackerName, ...], Range(most=3), tyro.conf.arg(name="track", prefix_name=False)
    ] = ()
    """Trackers that are told every line of metrics.jsonl: tensorboard, mlflow, wandb. Their
    libraries are extras: pip install mlflow-skinny, wandb."""

    def __post_init__(self) -> None:
        check(self, "metrics")
        require(bool(self.host), "metrics.host is empty; 0.0.0.0 listens on every address")
