"""What a tracker is, and what it is told of a run once. No library is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from trainer.files.json_files import read_json, write_json
from trainer.files.storage import StoragePath
from trainer.observe.trackers.choices import TrackerName

PROJECT = "tandem"
"""MLflow's experiment and W&B's project, where their own variables name none."""


class Tracker(Protocol):
    """A run within somebody's library."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, or an evaluation. May wait for a server, and may raise."""

    def close(self) -> None:
        """No more lines come."""


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker is opened for."""

    name: str
    folder: StoragePath
    """RUN/trackers: what each tracker needs to go on."""
    step: int
    """Step that this start goes on from."""
    config: dict[str, Any]
    """Every setting, in its sections."""

    @property
    def flat_config(self) -> dict[str, str]:
        """The settings as text: {"loss.name": "ssm", ...}."""
        return {
            f"{section}.{key}": str(value)
            for section, fields in self.config.items()
            for key, value in fields.items()
        }

    def known_id(self, tracker: TrackerName) -> str | None:
        """The tracker's run that an earlier start of RUN wrote to."""
        file = self.folder / f"{tracker}.json"
        return str(read_json(file)["id"]) if file.is_file() else None

    def keep_id(self, tracker: TrackerName, run_id: str) -> None:
        """Note the tracker's run, for later starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{tracker}.json", {"id": run_id})
