"""How far a run has come, and whether it is alive, read from its folder alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from trainer.base.mistake import Mistake
from trainer.base.run_files import SUMMARY_FILE
from trainer.base.typed import read_as
from trainer.distributed.hooks import RunPhase
from trainer.files.json_files import committed, read_json, step_of
from trainer.files.signs import LOOK_SECONDS, Signs
from trainer.files.storage import StoragePath
from trainer.run.folder import RunFolder
from trainer.run.lock import Owner, read_owner


@dataclass(frozen=True)
class RunState:
    """What RUN says."""

    run: str
    phase: RunPhase
    step: int
    """The last step in metrics.jsonl."""
    total_steps: int | None
    checkpoint_step: int | None
    done: int = 0
    total: int | None = None
    """How far it is with the phase (None: not known), while it is alive."""
    cause: str | None = None
    """Why it failed, in one line."""
    owner: Owner | None = None
    """Who writes it, while it is alive."""
    now: float | None = None
    """What the owner's clock shows now, to some seconds; None where nobody is alive."""

    @property
    def is_alive(self) -> bool:
        """Whether somebody works at it, or waits for room to."""
        return self.owner is not None

    def describe(self) -> str:
        """One line for people."""
        where = f" on {self.owner.host}" if self.owner else ""
        total = f" of {self.total_steps:,}" if self.total_steps else ""
        saved = "no checkpoint yet"
        if self.checkpoint_step is not None:
            saved = f"newest checkpoint of step {self.checkpoint_step:,}"
        cause = f": {self.cause}" if self.cause else ""
        return f"{self.run}: {self.shown_phase}{where}, step {self.step:,}{total}, {saved}{cause}"

    @property
    def shown_phase(self) -> str:
        """The phase, and how far it is with it; steps are told beside."""
        if not self.total or self.phase == "training":
            return self.phase
        share = "" if self.phase == "starting" else f" ({100 * self.done / self.total:.0f} %)"
        return f"{self.phase} {self.done:,} of {self.total:,}{share}"


@dataclass(frozen=True)
class End:
    """What summary.json says of how a start ended."""

    phase: Literal["stopped", "failed", "finished"] = "stopped"
    cause: str | None = None


def read_state(
    run: str | StoragePath, signs: Signs | None = None, watches: bool = False
) -> RunState:
    """The state of RUN. Raises Mistake where there is no run.

    Args:
        signs: of those who look again and again: what they have seen so far.
        watches: for some seconds, where this machine's clock and the owner's leave a doubt.
    """
    folder, signs = RunFolder(run), signs or Signs()
    folder.read_config()
    while (owner := read_owner(folder.path)) is not None:
        sign = signs.noted(owner, owner.renewed)
        if not (watches and sign.in_doubt):
            break
        time.sleep(LOOK_SECONDS)
    last = folder.last_metrics()
    step, steps = _whole(last.get("step")), _whole(last.get("total_steps"))
    checkpoints = committed(folder.checkpoints)
    saved = step_of(checkpoints[-1]) if checkpoints else None
    if owner is not None and sign.is_alive:
        place = (owner.phase, step or 0, steps, saved, owner.done, owner.total)
        return RunState(str(run), *place, owner=owner, now=sign.now)
    end = read_end(folder)
    return RunState(str(run), end.phase, step or 0, steps, saved, cause=end.cause)


def read_end(folder: RunFolder) -> End:
    """How the last start ended: a start takes the summary of the one before away, and one that was
    killed leaves none."""
    try:
        summary: Any = read_json(folder.path / SUMMARY_FILE)
        return read_as(End, {"phase": summary["phase"], "cause": summary.get("cause")})
    except (Mistake, KeyError, TypeError, AttributeError):
        return End()


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None
