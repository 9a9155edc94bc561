"""Jobs submitted from here: a cluster whose head was restarted has forgotten its own.

One line a job in $XDG_STATE_HOME/tandem/jobs.jsonl (~/.local/state/tandem): which cluster, which
command, and the RUN it writes. RUN itself says how far it came.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

MOST_JOBS = 1000


@dataclass(frozen=True)
class Submitted:
    """One job, as it was submitted."""

    job: str
    address: str
    command: tuple[str, ...]
    run: str | None
    """The folder or URI of the run that it trains, if it trains one."""
    at: float = field(default_factory=time.time)


def jobs_file() -> Path:
    """Where they are noted."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "tandem" / "jobs.jsonl"


def remember(job: Submitted) -> None:
    """Note a job; the oldest are forgotten."""
    file = jobs_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text().splitlines() if file.exists() else []
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    kept = [*lines[-MOST_JOBS + 1 :], json.dumps(asdict(job))]
    partial.write_text("".join(f"{line}\n" for line in kept))
    partial.rename(file)


def remembered(address: str) -> list[Submitted]:
    """Jobs submitted to `address` from here, oldest first."""
    file = jobs_file()
    lines = file.read_text().splitlines() if file.exists() else []
    jobs = [Submitted(**json.loads(line)) for line in lines]
    return [job for job in jobs if job.address == address.rstrip("/")]


def run_of(command: Sequence[str]) -> str | None:
    """The run that `train ... --out RUN` or `resume RUN` works on; None for other commands."""
    if command[:1] == ["resume"]:
        return next((word for word in command[1:] if not word.startswith("-")), None)
    if command[:1] != ["train"]:
        return None
    for place, word in enumerate(command):
        flag, equals, value = word.partition("=")
        if flag == "--out":
            return value if equals else next(iter(command[place + 1 : place + 2]), None)
    return None
