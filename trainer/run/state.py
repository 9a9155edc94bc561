"""How far a run has come, and whether it is alive, read from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainer.base.mistake import Mistake
from trainer.files.json_files import committed, read_json, step_of
from trainer.files.storage import StoragePath
from trainer.run.folder import RunFolder
from trainer.run.lock import Owner, read_owner


@dataclass(frozen=True)
class RunState:
    """What RUN says."""

    run: str
    state: Literal["running", "stopped", "finished"]
    step: int
    """The last step in metrics.jsonl."""
    total_steps: int | None
    checkpoint_step: int | None
    owner: Owner | None = None
    """Who writes it, while it runs: where, and what it is at."""

    def describe(self) -> str:
        """One line for people."""
        total = f" of {self.total_steps:,}" if self.total_steps else ""
        saved = "no checkpoint yet"
        if self.checkpoint_step is not None:
            saved = f"newest checkpoint of step {self.checkpoint_step:,}"
        where = f" on {self.owner.host}" if self.owner else ""
        return f"{self.run}: {self.state}{where}, step {self.step:,}{total}{self._phase()}, {saved}"

    def _phase(self) -> str:
        """What it is at besides training, and how far."""
        if self.owner is None or self.owner.phase == "training":
            return ""
        total = f" {self.owner.done:,} of {self.owner.total:,}" if self.owner.total else ""
        return f", {self.owner.phase}{total}"


def read_state(run: str | StoragePath) -> RunState:
    """The state of RUN. Raises Mistake where there is no run."""
    folder = RunFolder(run)
    folder.read_config()
    owner = read_owner(folder.path)
    alive = owner is not None and owner.is_alive
    last = folder.last_metrics()
    step, total = _whole(last.get("step")), _whole(last.get("total_steps"))
    checkpoints = committed(folder.checkpoints)
    return RunState(
        str(run),
        "running" if alive else "finished" if _is_finished(folder) else "stopped",
        step or 0,
        total,
        step_of(checkpoints[-1]) if checkpoints else None,
        owner if alive else None,
    )


def _is_finished(folder: RunFolder) -> bool:
    """Whether the last start came to its end: a stop on request is none, and a start takes the
    summary of the one before away."""
    try:
        summary: Any = read_json(folder.path / "summary.json")
    except Mistake:
        return False
    return isinstance(summary, dict) and summary.get("stopped_on_request") is False


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None
