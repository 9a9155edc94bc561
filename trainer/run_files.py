"""Files of a run that are read and written without torch: whole checkpoints, JSON in one go."""

from __future__ import annotations

import json
from typing import Any

from trainer.storage import StoragePath, write_whole

STEP_FOLDER = "step-{:08d}"
COMMIT_FILE = "checkpoint.json"


def committed(folder: StoragePath) -> list[StoragePath]:
    """Finished checkpoints, oldest first."""
    return sorted((path for path in _steps(folder) if (path / COMMIT_FILE).is_file()), key=str)


def leftovers(folder: StoragePath, before: StoragePath) -> list[StoragePath]:
    """Checkpoints older than `before` that are not whole: nobody writes them any more."""
    older = [path for path in _steps(folder) if step_of(path) < step_of(before)]
    return [path for path in older if not (path / COMMIT_FILE).is_file()]


def _steps(folder: StoragePath) -> list[StoragePath]:
    if not folder.exists():
        return []
    return [path for path in folder.iterdir() if path.name.startswith("step-")]


def step_of(path: StoragePath) -> int:
    """The training step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def write_json(path: StoragePath, value: Any) -> None:
    """Write whole or not at all."""
    write_whole(path, json.dumps(value, indent=1))
