"""Runs of one rank in this process: trained, hurt, and gone on with."""

from pathlib import Path
from typing import Any

from tests.datasets import make_dataset
from tests.test_training import small_config
from trainer.observe.progress import SilentProgress
from trainer.run.checkpoint_facts import COMMIT_FILE
from trainer.run.folder import Resume, RunSpec
from trainer.train import run_worker

STEPS = 10
"""Of a whole run: one epoch."""


def small_data(folder: Path) -> str:
    """The data of a run of STEPS steps an epoch, below an empty folder."""
    make_dataset(folder / "data", users=60, items=40, rows=1400)
    return str(folder / "data")


class Notes(SilentProgress):
    """Keeps what the user would be told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def spec_of(data: str, out: Path, resume: Resume = False, /, **sections: dict[str, Any]) -> RunSpec:
    """One epoch of STEPS steps on `small_data`."""
    settings: dict[str, dict[str, Any]] = {
        "training": {"epochs": 1},
        "checkpoint": {"every_steps": 4, "keep": 2},
        "optimizer": {"schedule": "constant"},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return RunSpec("ml-100k", small_config(**settings), data, str(out), resume=resume)


def begun(data: str, out: Path, /, **sections: dict[str, Any]) -> list[str]:
    """A new run to its end; what was said."""
    notes = Notes()
    run_worker(spec_of(data, out, **sections), notes)
    return notes.said


def resumed(data: str, out: Path, /, **sections: dict[str, Any]) -> list[str]:
    """Go on with a run to its end; what was said."""
    notes = Notes()
    run_worker(spec_of(data, out, True, **sections), notes)
    return notes.said


def checkpoints(out: Path) -> list[Path]:
    """Finished ones, oldest first."""
    return sorted(path.parent for path in out.glob(f"checkpoints/step-*/{COMMIT_FILE}"))
