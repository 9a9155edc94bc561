"""What a run has met, as its checkpoints say it: windows by number, and rows of their events.

Windows leave the data, and users are forgotten. What a run has met of them is not new to it when it
comes again, so it is kept with the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.data.events.event_stream import Before
from trainer.data.schema import Dataset
from trainer.run.checkpoint_facts import WindowsTrained
from trainer.run.checkpoint_read import Found, load

ROWS = {"liked_items": "liked_I", "items": "item_I", "users": "user_U"}
"""Names in a checkpoint, below "windows", of `Before`'s fields."""


@dataclass(frozen=True)
class Met:
    """Of the checkpoint that a run goes on from."""

    trained: WindowsTrained = field(default_factory=WindowsTrained)
    before: Before | None = None
    """None: nothing, or it does not say."""


def state_of_met(before: Before) -> dict[str, dict[str, Tensor]]:
    """As a checkpoint has it."""
    return {
        "windows": {name: torch.from_numpy(getattr(before, rows)) for name, rows in ROWS.items()}
    }


def met_by(found: Found, dataset: Dataset) -> Met:
    """What a checkpoint's run had met, by rows of the dataset as it is now. Collective."""
    trained = found.facts.windows or WindowsTrained()
    if not all(f"windows.{name}" in found.facts.tensors for name in ROWS):
        return Met(trained)
    before = Before.nothing(dataset)
    load(found, state_of_met(before))  # collective; fills the arrays in place
    return Met(trained, before)


def met_elsewhere(run: str, found: Found, dataset: Dataset) -> Met:
    """What a run that starts from `run` need not train on again, nor take for new. Collective.

    Raises:
        Mistake: where its checkpoint does not say which windows it has met.
    """
    met = met_by(found, dataset)  # collective
    if met.trained.newest < 0:
        raise Mistake(
            f"--start-from {run}: its checkpoint does not say which windows it was trained on, so "
            "--windows cannot go on after them; leave one of the two out"
        )
    return Met(WindowsTrained(after=met.trained.newest), met.before)
