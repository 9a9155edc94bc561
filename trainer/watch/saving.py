"""A run's checkpoints as training writes them: told of, timed, and not worth a run's life."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from trainer.distributed.ranks import Ranks
from trainer.observe.metrics import RankMetrics
from trainer.observe.progress import Progress
from trainer.run.checkpoint_facts import Facts, ValidationState
from trainer.run.checkpoint_write import CheckpointWriteError, CheckpointWriter
from trainer.run.folder import RunFolder
from trainer.watch.run_phases import RunPhases


class Saving:
    """`CheckpointWriter`, of which a checkpoint that cannot be written is told: training goes on.

    Collective where that is.
    """

    def __init__(
        self,
        folder: RunFolder,
        ranks: Ranks,
        keep: int,
        metrics: RankMetrics,
        progress: Progress,
        phases: RunPhases,
    ) -> None:
        self._folder, self._metrics, self._progress = folder, metrics, progress
        self.writer = CheckpointWriter(  # collective
            folder.checkpoints,
            ranks,
            keep,
            self._written,
            self._before_commit,
            lambda done, total: phases.at("checkpointing", done, total),
        )

    def save(self, state: dict[str, Any], facts: Facts) -> None:
        """Begin a checkpoint. Collective."""
        started = time.perf_counter()
        self._tolerant(self.writer.wait)
        self.writer.save(state, facts)
        self._metrics.observe("tandem_checkpoint_seconds", time.perf_counter() - started)

    def amend(self, state: ValidationState) -> None:
        """Note in the newest what an evaluation found. Collective."""
        self._tolerant(lambda: self.writer.amend(state))  # collective

    def _written(self, seconds: float) -> None:
        self._metrics.observe("tandem_checkpoint_write_seconds", seconds)
        self._metrics.set("tandem_checkpoint_timestamp_seconds", time.time())

    def _before_commit(self) -> None:
        """Rank 0, in the writing thread: lines first, and nothing once another start took over."""
        self._folder.lock.confirm()
        self._folder.flush()

    def _tolerant(self, write: Callable[[], None]) -> None:
        try:
            write()
        except CheckpointWriteError as error:  # the next one may succeed
            self._metrics.add("tandem_checkpoint_failures_total")
            self._progress.message(f"{error}; training goes on")
