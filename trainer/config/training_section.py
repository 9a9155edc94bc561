"""The config's sections `training` and `checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trainer.base.typed import Range, check
from trainer.config.limits import MOST_COLUMNS, Steps


@dataclass(frozen=True)
class TrainingConfig:
    """Length, batch and seed of the run."""

    epochs: Annotated[int, Range(least=1, most=10**9)] = 5
    """Passes over the training rows."""
    max_steps: Steps | None = None
    """Stop after this many steps even if epochs are left."""
    global_batch_size: Annotated[int, Range(least=1, most=MOST_COLUMNS)] = 2048
    """Rows a step over all workers together; must divide by the number of workers."""
    seed: Annotated[int, Range(least=0, below=2**63)] = 1
    """Seeds tables, shuffling and sampling."""
    log_every_steps: Steps = 50
    """Steps between two lines of metrics; the only steps where a GPU is waited for."""
    threads: Annotated[int, Range(least=0, most=1024)] = 0
    """CPU threads a worker; 0: the machine's cores divided by its workers."""

    def __post_init__(self) -> None:
        check(self, "training")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept."""

    every_steps: Steps | None = None
    """Steps between checkpoints; None: one an epoch."""
    keep: Annotated[int, Range(least=1, most=10**6)] = 2
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        check(self, "checkpoint")
