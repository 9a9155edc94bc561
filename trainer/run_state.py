"""How far a run has come, and whether it is alive, read from its folder alone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Literal

from trainer.lock import SILENT_SECONDS
from trainer.run import RunFolder
from trainer.run_files import committed, step_of
from trainer.storage import StoragePath


@dataclass(frozen=True)
class RunState:
    """What RUN says."""

    run: str
    state: Literal["running", "stopped", "finished"]
    step: int
    """The last step in metrics.jsonl."""
    total_steps: int | None
    checkpoint_step: int | None
    host: str | None
    """Where it runs."""
    phase: str | None = None
    """What it is at, of hooks.RunPhase, while it runs."""
    done: int = 0
    total: int | None = None
    """How far it is with that."""

    def describe(self) -> str:
        """One line for people."""
        total = f" of {self.total_steps:,}" if self.total_steps else ""
        saved = "no checkpoint yet"
        if self.checkpoint_step is not None:
            saved = f"newest checkpoint of step {self.checkpoint_step:,}"
        where = f" on {self.host}" if self.host else ""
        phase = f", {self.phase}" if self.phase not in (None, "training") else ""
        if phase and self.total:
            phase += f" {self.done:,} of {self.total:,}"
        return f"{self.run}: {self.state}{where}, step {self.step:,}{total}{phase}, {saved}"


def read_state(run: str | StoragePath) -> RunState:
    """The state of RUN. Raises Mistake where there is no run."""
    folder = RunFolder(run)
    folder.read_config()
    owner_file, summary_file = folder.path / "owner.json", folder.path / "summary.json"
    owner = json.loads(owner_file.read_text()) if owner_file.is_file() else None
    alive = owner is not None and time.time() - owner["renewed"] < SILENT_SECONDS
    last = folder.last_metrics()
    step, total = last.get("step", 0), last.get("total_steps")
    finished = summary_file.is_file() and not alive
    if finished:
        summary = json.loads(summary_file.read_text())
        finished = not summary["stopped_on_request"] and summary["steps"] >= step
    checkpoints = committed(folder.checkpoints)
    return RunState(
        str(run),
        "running" if alive else "finished" if finished else "stopped",
        step,
        total,
        step_of(checkpoints[-1]) if checkpoints else None,
        owner["host"] if alive and owner is not None else None,
        **({key: owner[key] for key in ("phase", "done", "total")} if alive and owner else {}),
    )
