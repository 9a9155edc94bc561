"""Files of a run that are read and written without torch: whole checkpoints, JSON in one go."""

import json
import os
from pathlib import Path
from typing import Any

STEP_FOLDER = "step-{:08d}"
COMMIT_FILE = "checkpoint.json"


def committed(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{COMMIT_FILE}"))


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all: to a temporary name, synced, then renamed."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)
