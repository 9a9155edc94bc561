"""Flags of `tandem compare`; no torch, so that --help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from losses.choices import LossName
from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.base.ranges import check_given, check_ranges
from trainer.compare.cases import MOST_TUNING_TRIALS, Section
from trainer.files.paths import LastingPath

MOST_SEEDS = 1000
MOST_EPOCHS = 100_000
MOST_UNIFORM = 1 << 24
MOST_WORKERS = 100_000


@dataclass(frozen=True)
class CompareArguments:
    """Train losses at equal tuning budgets and show how they compare."""

    data: Annotated[LastingPath, tyro.conf.Positional]
    """Folder of a prepared dataset with validation and test splits."""
    out: LastingPath
    """Folder for the results; one that was begun with the same flags is gone on with."""
    losses: tuple[LossName, ...] = ("ssm", "sl", "bsl", "ccl", "ova", "bpr", "ntr", "ssm_ntr")
    """Losses compared."""
    sections: tuple[Section, ...] = ("noise", "dislikes", "negatives")
    """What is compared beside the losses themselves. hardness: .1 to 1 in each softmax loss.
    clipping (what a floor under Q costs) shows on long-tailed data of over a million train rows
    alone."""
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
    address: str | None = None
    """Ray cluster that they are tasks of ("auto": the one of this machine); --data and --out must
    lie in folders that all its machines share. Left out: RAY_ADDRESS, else this machine."""

    def __post_init__(self) -> None:
        check_given(self, ("out", "address"), ("data",))
        if not self.losses:
            raise Mistake("--losses is empty: give at least one")
        check_ranges(
            self,
            seeds=(1, MOST_SEEDS),
            tuning_trials=(1, MOST_TUNING_TRIALS),
            epochs=(1, MOST_EPOCHS),
            uniform=(1, MOST_UNIFORM),
            workers=(1, MOST_WORKERS if self.address else max(usable_cpus(), 2)),
        )
