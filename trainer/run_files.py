"""Files of a run that are read and written without torch: whole checkpoints, JSON in one go."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainer.storage import StoragePath

STEP_FOLDER = "step-{:08d}"
COMMIT_FILE = "checkpoint.json"


def committed(folder: StoragePath) -> list[StoragePath]:
    """Finished checkpoints, oldest first."""
    if not folder.exists():
        return []
    steps = [path for path in folder.iterdir() if path.name.startswith("step-")]
    return sorted((path for path in steps if (path / COMMIT_FILE).is_file()), key=str)


def step_of(path: StoragePath) -> int:
    """The training step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def write_json(path: StoragePath, value: Any) -> None:
    """Write whole or not at all: to a temporary name, synced, then renamed."""
    text = json.dumps(value, indent=1)
    if not isinstance(path, Path):
        path.write_text(text)
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)
