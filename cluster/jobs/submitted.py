"""Jobs submitted from here: a cluster whose head was restarted has forgotten its own.

One line a job in $XDG_STATE_HOME/tandem/jobs.jsonl (~/.local/state/tandem): which cluster, which
command, and the RUN it writes. RUN itself says how far it came.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trainer.base.screen import say
from trainer.base.typed import read_as
from trainer.files.storage import write_whole

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
    """Note a job; the oldest are forgotten. Where that cannot be done it is said: the job runs."""
    file = jobs_file()
    kept = [*_noted(file)[-MOST_JOBS + 1 :], job]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, "".join(f"{json.dumps(asdict(each))}\n" for each in kept))
    except OSError as error:
        say(f"job {job.job} is not noted in {file} ({error.strerror})", file=sys.stderr)


def remembered(address: str) -> list[Submitted]:
    """Jobs submitted to `address` from here, oldest first."""
    return [job for job in _noted(jobs_file()) if job.address == address.rstrip("/")]


def _noted(file: Path) -> list[Submitted]:
    """Jobs in a file of them; lines that a crash has torn, or of another form, are passed over."""
    try:
        lines = file.read_bytes().split(b"\n") if file.is_file() else []
    except OSError:  # somebody else's
        return []
    jobs = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # no JSON, or not of a job
            jobs.append(read_as(Submitted, json.loads(line), "job"))
    return jobs


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
