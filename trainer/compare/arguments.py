"""Flags of `tandem compare`; no torch, so that --help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from trainer.compare.cases import MOST_TUNING_TRIALS, Section
from trainer.config import LossName
from trainer.mistake import Mistake


@dataclass(frozen=True)
class CompareArguments:
    """Train losses at equal tuning budgets and show how they compare."""

    data: Annotated[str, tyro.conf.Positional]
    """Folder of a prepared dataset with validation and test splits."""
    out: str
    """Folder for the results; one that was begun with the same flags is gone on with."""
    losses: tuple[LossName, ...] = ("ssm", "sl", "bsl", "ccl", "ova", "bpr", "ntr", "ssm_ntr")
    """Losses compared."""
    sections: tuple[Section, ...] = ("noise", "dislikes", "negatives")
    """What is compared beside the losses themselves. clipping (what a floor under Q costs) shows on
    long-tailed data of over a million train rows alone."""
    seeds: int = 3
    """Trainings of each case with the setting found."""
    tuning_trials: int = 4
    """Settings tried for each loss, on the validation split, with seed 0."""
    epochs: int = 10
    """Passes over train in each training."""
    uniform: int = 1024
    """Shared uniform negatives a step."""
    preset: str = "ml-100k-mf"
    """Where model, optimizer and batch come from."""
    workers: int = 2
    """Trainings side by side."""

    def __post_init__(self) -> None:
        if not 1 <= self.tuning_trials <= MOST_TUNING_TRIALS:
            raise Mistake(
                f"tuning_trials is {self.tuning_trials}; each loss has 1 to {MOST_TUNING_TRIALS} "
                "settings to try"
            )
        if min(self.seeds, self.epochs, self.workers, self.uniform) < 1 or not self.losses:
            raise Mistake("seeds, epochs, workers, uniform and losses need at least 1 each")
