"""What goes along with a job: the folder it runs in, Tandem itself, and what a cluster refuses."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.workers.ray_private import JOB_STOP_VARIABLE, LARGEST_PACKAGE_BYTES, packed_files
from cluster.workers.session import START, our_packages
from tandem import is_ours
from trainer.base.mistake import Mistake

STOP_SECONDS = 300
"""Given to a job that is stopped: a step, and the last checkpoint's write."""
MOST_NAMED_FILES = 3
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
REMEDY = "name data in a .gitignore there, or send another folder, which may be empty"


def runtime_env(working_dir: Path) -> dict[str, Any]:
    """The packed folder, our packages where it does not hold them, and time to end in.

    Raises:
        Mistake: where there is no such folder, a cluster would not take it, or a file in it would
            be run in place of ours.
    """
    if not working_dir.is_dir():
        raise Mistake(f"--working-dir {working_dir}: no such folder")
    check_size(working_dir)
    environment: dict[str, Any] = {
        "working_dir": str(working_dir.resolve()),
        "env_vars": {JOB_STOP_VARIABLE: str(STOP_SECONDS)},
    }
    if not is_checkout(working_dir):
        environment["py_modules"] = our_packages()
    return environment


def variables_of(given: Sequence[str]) -> dict[str, str]:
    """The job's environment variables from `NAME=VALUE`, or `NAME`, which is set here.

    Raises:
        Mistake: where a name is none, or is not set here.
    """
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not NAME.fullmatch(name):
            raise Mistake(f"--env {each}: {name!r} is no variable's name; give NAME=VALUE or NAME")
        if not equals and name not in os.environ:
            raise Mistake(f"--env {name}: it is not set here; give {name}=VALUE")
        found[name] = value if equals else os.environ[name]
    return found


def is_checkout(working_dir: Path) -> bool:
    """Whether the folder holds Tandem itself.

    Raises:
        Mistake: where it holds another module of the name that a job starts by.
    """
    start = working_dir / START.name
    if start.is_file() and is_ours(start):
        return is_ours(working_dir / "cluster" / "__init__.py")
    for module in (start, working_dir / START.stem / "__init__.py"):
        if module.is_file():
            raise Mistake(
                f"--working-dir {working_dir} has {module.relative_to(working_dir)}, which the job "
                "would run in place of Tandem: rename it, or send another folder"
            )
    return False


def check_size(working_dir: Path) -> None:
    """Raise Mistake where a cluster would not take the folder, before it is read and packed."""
    files = sorted(packed_files(working_dir), key=lambda file: file[1], reverse=True)
    total = sum(size for _, size in files)
    if total > LARGEST_PACKAGE_BYTES:
        largest = ", ".join(
            f"{path.relative_to(working_dir.absolute())} ({size / 2**20:,.1f} MiB)"
            for path, size in files[:MOST_NAMED_FILES]
        )
        raise Mistake(
            f"--working-dir {working_dir} ({working_dir.resolve()}) has {total / 2**20:,.0f} MiB "
            f"to send, and a cluster takes {LARGEST_PACKAGE_BYTES / 2**20:.0f} MiB: {REMEDY}; the "
            f"largest: {largest}"
        )


def refusal_message(address: str, error: Exception) -> str:
    """What to do where a cluster answers, but takes no job."""
    text = str(error).strip()
    if "status code 413" in text:
        return (
            f"the cluster at {address} refused the job: what --working-dir names is too large for "
            f"it; {REMEDY}"
        )
    if "No available agent" not in text:
        return f"the cluster at {address} refused the job: {text}"
    return (
        f"the cluster at {address} takes no jobs: the agent on its head does not answer. Mostly "
        "its port, 52365, was another Ray's on that machine (a local `tandem train`, for one) when "
        "the head started: start the head anew with `ray start --head "
        "--dashboard-agent-listen-port=0`. Its logs, /tmp/ray/session_latest/logs/"
        "dashboard_agent.log, say more"
    )
