"""What a launcher hangs on a run: it is told of things, and may ask the run to stop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

RunPhase = Literal[
    "starting",
    "waiting",
    "training",
    "evaluating",
    "checkpointing",
    "stopped",
    "failed",
    "finished",
]
"""What a run can be at. starting: from the first line of a worker to its first step; a checkpoint
that it goes on from is read there. waiting: its driver waits for room for workers. checkpointing:
training waits for a checkpoint. stopped: nobody works at it, it can be gone on with. failed: the
same, and why is known."""


@dataclass(frozen=True)
class Hooks:
    """Called on every rank, from the training thread; all must be quick."""

    on_serving: Callable[[int, str], None] = lambda rank, address: None
    """Told this rank's number and the address ("host:port") of its metrics endpoint."""
    on_phase: Callable[[RunPhase, int, int | None], None] = lambda phase, done, total: None
    """Told what the rank is at, and how far: `done` of `total` (None: not known) units of the
    phase. Each call is a sign that the work goes forward, also where `done` is as before. Units:
    training, steps; evaluating, queries; checkpointing, bytes; starting, parts of it, or bytes
    of the checkpoint."""
    on_checkpoint: Callable[[dict[str, Any]], None] = lambda facts: None
    """Told the facts of each checkpoint begun."""
    on_evaluation: Callable[[dict[str, float]], None] = lambda values: None
    """Told step, epoch and metrics of each evaluation while training, on rank 0."""
    on_step: Callable[[int], None] = lambda step: None
    """Told the number of each step finished."""
    stop_requested: Callable[[], bool] = lambda: False
    """Asked every step. True on any rank: one step later all ranks write a checkpoint and return,
    to be resumed later."""
