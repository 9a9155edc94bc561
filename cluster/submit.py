"""`tandem submit --address http://HEAD:8265 -- train PRESET …`: the same command, as a Ray job.

The working directory is packed (what git ignores stays out), the command runs on the cluster, and
its output is streamed here. `tandem status`, `logs` and `stop` speak to the same address.
"""

import asyncio
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import ray.exceptions
import tyro
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.session import OUR_PACKAGES, join_message, package_folders
from cluster.submitted import Submitted, remember, remembered, run_of
from cluster.usage import parse
from trainer.mistake import Mistake, UsageError
from trainer.run_state import read_state

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PATH_FLAGS = ("--data", "--out")
EXIT_STATUS = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 130}


@dataclass(frozen=True)
class SubmitArguments:
    """Run a tandem command as a Ray job; the command follows after `--`."""

    address: str = DEFAULT_ADDRESS
    """The cluster's dashboard."""
    detach: bool = False
    """Print the job's id and leave; otherwise follow its output to the end."""
    working_dir: str = "."
    """Folder packed and sent; the command runs in it. What git ignores stays out."""
    python: str | None = None
    """Interpreter on the cluster, with Tandem's requirements. Left out: this one where the
    address is this machine, else `python` as the cluster's PATH finds it."""


@dataclass(frozen=True)
class JobArguments:
    """One job of a cluster."""

    job: Annotated[str, tyro.conf.Positional]
    """The job's id, as `tandem submit` printed it."""
    address: str = DEFAULT_ADDRESS
    """The cluster's dashboard."""


@dataclass(frozen=True)
class LogsArguments(JobArguments):
    """A job's output so far."""

    follow: bool = False
    """Go on until the job ends."""


@dataclass(frozen=True)
class StatusArguments:
    """Jobs of a cluster, or the state of a run."""

    job: Annotated[str | None, tyro.conf.Positional] = None
    """A job's id, or the folder or URI of a run; left out: all of Tandem's jobs."""
    address: str = DEFAULT_ADDRESS
    """The cluster's dashboard."""


def submit(arguments: Sequence[str]) -> int:
    """Submit, and follow to the end unless detached. Exit status: the job's."""
    flags, command = split_command(arguments)
    parsed = parse(SubmitArguments, "tandem submit", flags)
    check_command(command)
    client = connect(parsed.address)
    try:
        job = client.submit_job(
            entrypoint=shlex.join([python_of(parsed), "-m", "cluster.cli", *command]),
            runtime_env=runtime_env(Path(parsed.working_dir)),
            metadata={"tandem": shlex.join(command)},
        )
    except RuntimeError as error:
        raise Mistake(refusal_message(parsed.address, error)) from error
    remember(Submitted(job, parsed.address.rstrip("/"), tuple(command), run_of(command)))
    print(f"job {job} on {parsed.address}", flush=True)
    if parsed.detach:
        print(f"next: tandem logs {job} --follow --address {parsed.address}")
        return 0
    return follow(client, job)


def status(arguments: Sequence[str]) -> int:
    """One job's state, or a line for each of ours; or how far a run has come, by its folder."""
    parsed = parse(StatusArguments, "tandem status", arguments)
    if parsed.job is not None and ("/" in parsed.job or Path(parsed.job).is_dir()):
        state = read_state(parsed.job)
        print(state.describe())
        return 1 if state.state == "stopped" else 0
    client = connect(parsed.address)
    known = {job.submission_id: job for job in client.list_jobs()}
    lost = [job for job in remembered(parsed.address) if job.job not in known]
    if parsed.job is not None:
        for job in lost:
            if job.job == parsed.job:
                print_lost(job)
                return EXIT_STATUS[JobStatus.FAILED]
        details = find_job(client, parsed.job)
        print(f"{parsed.job}  {details.status.value}  {first_line(details.message)}")
        return EXIT_STATUS.get(details.status, 0)
    ours = [job for job in known.values() if "tandem" in (job.metadata or {})]
    for job in sorted(ours, key=lambda job: job.start_time or 0):
        print(f"{job.submission_id}  {job.status.value:10}  tandem {job.metadata['tandem']}")
    for job in lost:
        print_lost(job)
    if not ours and not lost:
        print(f"no job of Tandem's on {parsed.address}")
    return 0


def print_lost(job: Submitted) -> None:
    """A job that its cluster has forgotten: what its run says, and how to go on with it."""
    print(f"{job.job}  {'LOST':10}  tandem {shlex.join(job.command)}")
    print("    its cluster was restarted since and has forgotten it")
    if job.run is None:
        return
    try:
        state = read_state(job.run)
    except (ValueError, OSError) as error:
        print(f"    its run cannot be read from here: {error}")
        return
    print(f"    {state.describe()}")
    if state.state == "stopped":
        print(f"    go on: tandem submit --address {job.address} -- resume {job.run}")


def logs(arguments: Sequence[str]) -> int:
    """A job's output."""
    parsed = parse(LogsArguments, "tandem logs", arguments)
    client = connect(parsed.address)
    find_job(client, parsed.job)
    if parsed.follow:
        return follow(client, parsed.job)
    print(client.get_job_logs(parsed.job), end="")
    return 0


def stop(arguments: Sequence[str]) -> int:
    """Ask a job to end; a run's last checkpoint stays."""
    parsed = parse(JobArguments, "tandem stop", arguments)
    client = connect(parsed.address)
    details = find_job(client, parsed.job)
    if not client.stop_job(parsed.job):
        raise Mistake(f"job {parsed.job} is {details.status.value} already")
    print(f"stopping {parsed.job}")
    return 0


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of `submit` before `--`, the command after it."""
    if "--" in arguments:
        at = list(arguments).index("--")
        return list(arguments[:at]), list(arguments[at + 1 :])
    return list(arguments), []


def check_command(command: Sequence[str]) -> None:
    """The command must be there, and its paths must mean something on another machine."""
    if not command:
        raise UsageError(
            "which command? tandem submit --address http://HEAD:8265 -- train PRESET ..."
        )
    paths = [("RUN", command[1])] if command[0] == "resume" and len(command) > 1 else []
    for place, argument in enumerate(command):
        flag, equals, value = argument.partition("=")
        if flag in PATH_FLAGS:
            paths.append((flag, value if equals else "".join(command[place + 1 : place + 2])))
    for flag, path in paths:
        if not path.startswith("/") and "://" not in path:
            raise UsageError(
                f"{flag} {path}: a job runs in a copy of the working directory that is deleted "
                "with it; give an absolute path that every node sees, or a URI"
            )


def python_of(arguments: SubmitArguments) -> str:
    """The interpreter that runs the command on the cluster."""
    if arguments.python is not None:
        return arguments.python
    here = urlsplit(arguments.address).hostname in LOOPBACK
    return sys.executable if here else "python"


def runtime_env(working_dir: Path) -> dict[str, Any]:
    """The packed folder, and our packages where the folder does not hold them."""
    if not working_dir.is_dir():
        raise Mistake(f"--working-dir {working_dir}: no such folder")
    env: dict[str, Any] = {"working_dir": str(working_dir.resolve())}
    if not (working_dir / "cluster" / "cli.py").is_file():
        env["py_modules"] = [str(folder) for folder in package_folders(OUR_PACKAGES)]
    return env


def connect(address: str) -> JobSubmissionClient:
    """The job API at `address`. Raises Mistake that says what to set or start."""
    if not address.startswith(("http://", "https://")):
        raise Mistake(f"--address {address}: the dashboard's, as http://HEAD:8265")
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise Mistake(join_message(address, error)) from error


def refusal_message(address: str, error: Exception) -> str:
    """What to do where a cluster answers, but takes no job."""
    text = str(error).strip()
    if "No available agent" not in text:
        return f"the cluster at {address} refused the job: {text}"
    return (
        f"the cluster at {address} takes no jobs: the agent on its head does not answer. Mostly "
        "its port, 52365, was another Ray's on that machine (a local `tandem train`, for one) when "
        "the head started: start the head anew with `ray start --head "
        "--dashboard-agent-listen-port=0`. Its logs, /tmp/ray/session_latest/logs/"
        "dashboard_agent.log, say more"
    )


def find_job(client: JobSubmissionClient, job: str) -> Any:
    """What the cluster knows of `job`."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise Mistake(f"no job {job} on this cluster; `tandem status` lists jobs") from error


def first_line(message: str | None) -> str:
    """Ray appends the whole log to a failed job's message."""
    return (message or "").partition("\n")[0].partition(", last available logs")[0]


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print the job's output until its end. Ctrl-C leaves the job running."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        print(f"\njob {job} goes on; end it with: tandem stop {job}")
        return 130
    details = client.get_job_info(job)
    if details.status not in EXIT_STATUS:
        print(f"the connection ended while job {job} is {details.status.value}")
        return 1
    if details.status is not JobStatus.SUCCEEDED:
        print(f"job {job} {details.status.value}: {first_line(details.message)}")
    return EXIT_STATUS[details.status]
