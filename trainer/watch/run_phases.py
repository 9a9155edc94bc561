"""What a run is at, told to all who ask: the launcher, the run's folder, Prometheus, the user."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.config.metrics_section import MetricsConfig
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.hooks import Hooks, RunPhase
from trainer.distributed.ranks import Ranks
from trainer.observe.metrics import RankMetrics
from trainer.observe.progress import Progress
from trainer.observe.trackers.mirror import Mirrors
from trainer.observe.trackers.tracker import Tracked
from trainer.run.folder import RunFolder


class RunPhases:
    """One rank's account of what it is at, and how far it has come with it.

    Args:
        folder: where the phase is written beside the sign of life, on rank 0; None elsewhere.
        progress: told of the phases that take the place of training's own line.
    """

    def __init__(
        self, hooks: Hooks, folder: RunFolder | None, progress: Progress, metrics: RankMetrics
    ) -> None:
        self._hooks = hooks
        self._folder = folder
        self._progress = progress
        self._metrics = metrics
        self._phase: RunPhase | None = None

    def at(self, phase: RunPhase, done: int = 0, total: int | None = None) -> None:
        """`done` of `total` units (None: not known) of `phase` are through. No collective."""
        self._hooks.on_phase(phase, done, total)
        self._metrics.set("tandem_progress_timestamp_seconds", time.time())
        if phase != self._phase:
            if self._phase is not None:
                self._metrics.set("tandem_phase", 0, self._phase)
            self._metrics.set("tandem_phase", 1, phase)
            self._phase = phase
        if self._folder is not None:
            self._folder.note_phase(phase, done, total)

    def evaluating(self, done: int, total: int) -> None:
        """So many queries of an evaluation are through."""
        self.at("evaluating", done, total)
        self._progress.update("evaluating", done, total)


def serve_metrics(
    metrics: RankMetrics,
    wanted: MetricsConfig,
    ranks: Ranks,
    on_serving: Callable[[int, str], None],
) -> None:
    """Serve a rank's metrics, where they are wanted, and tell where. No collective."""
    if wanted.enabled:
        port = wanted.port + ranks.local_rank if wanted.port else 0
        address = metrics.serve(wanted.host, port, wanted.advertise, ranks.rendezvous)
        on_serving(ranks.rank, address)


def mirrored(folder: RunFolder, config: Config, step: int, tell: Callable[[str], None]) -> Mirrors:
    """Rank 0: have trackers be told what is written from here on."""
    name = str(folder.path).rstrip("/").rpartition("/")[2]
    tracked = Tracked(name, folder.path / "trackers", step, config.to_json())
    mirrors = Mirrors(config.metrics.track, tracked, tell)
    folder.mirror_to(mirrors.log)
    return mirrors


def describe_run(
    metrics: RankMetrics, config: Config, dataset: Dataset, world_size: int, steps_per_epoch: int
) -> None:
    """Publish what is known before the first step."""
    metrics.set("tandem_world_size", world_size)
    metrics.set(
        "tandem_checkpoint_interval_steps", config.checkpoint.every_steps or steps_per_epoch
    )
    for side in ("item", "user"):
        metrics.add("tandem_rows_admitted_total", 0, side)
    for reason, rows in (dataset.dropped or {"none": 0}).items():
        metrics.set("tandem_dataset_rows_dropped", rows, reason)
