"""A run of Weights & Biases'. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE hold as anywhere."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

import wandb

from trainer.observe.trackers.tracker import PROJECT, Tracked


class WeightsAndBiases:
    """Opens the run of before by its id, or a new one. Nothing is printed."""

    def __init__(self, tracked: Tracked) -> None:
        known = tracked.known_id("wandb")
        run_id = known or uuid.uuid4().hex[:12]
        folder = tracked.folder
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        wandb.setup(wandb.Settings(silent=True))  # else it asks a terminal for a key, and waits
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            resume="allow",
            name=tracked.name,
            config=tracked.config,
            dir=str(folder) if isinstance(folder, Path) else tempfile.gettempdir(),
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
            ),
        )
        tracked.keep_id("wandb", run_id)

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self._run.step:  # W&B takes no step again
            self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
