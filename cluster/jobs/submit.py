"""`tandem submit --address http://HEAD:8265 -- train PRESET …`: the same command, as a Ray job.

The working directory is packed (what git ignores stays out), the command runs on the cluster, and
its output is streamed here. `tandem status`, `logs` and `stop` speak to the same address.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from ray.job_submission import JobDetails, JobStatus

from cluster.jobs.job_api import (
    DEFAULT_ADDRESS,
    connect,
    find_dashboard,
    find_job,
    interpreter,
)
from cluster.jobs.job_command import check_command, driver_cpus
from cluster.jobs.job_output import EXIT_STATUS, LOOK_SECONDS, first_line, follow, told_of
from cluster.jobs.job_package import refusal_message, runtime_env, variables_of
from cluster.jobs.submitted import Submitted, remember, remembered, run_of
from cluster.workers.ray_private import JOB_STOP_SECONDS, JOB_STOP_VARIABLE, uploaded_module
from cluster.workers.session import START
from trainer.base.mistake import Mistake
from trainer.base.ranges import check_ranges
from trainer.base.screen import say
from trainer.base.usage import parse
from trainer.live.below import is_folder_of_runs, show_newest
from trainer.run.state import read_state

MOST_CPUS = 1 << 16


@dataclass(frozen=True)
class OfCluster:
    """Which cluster is spoken to."""

    address: str | None = None
    """The cluster's dashboard, as http://HEAD:8265. Left out: RAY_API_SERVER_ADDRESS, else
    RAY_ADDRESS, else this machine's."""


@dataclass(frozen=True)
class SubmitArguments(OfCluster):
    """Run a tandem command as a Ray job; the command follows after `--`."""

    detach: bool = False
    """Print the job's id and leave; otherwise follow its output to the end."""
    working_dir: str = "."
    """Folder packed and sent; the command runs in it. What git ignores stays out."""
    python: str | None = None
    """Interpreter on the cluster, with Tandem's requirements. Left out: this one where the
    cluster's head is this machine, else `python` as the cluster's PATH finds it."""
    env: tuple[str, ...] = ()
    """Environment variables of the job and its workers, as NAME=VALUE, or NAME alone: as here."""
    driver_cpus: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """CPUs that the command itself takes of a node. Left out: 1 for one that works by itself, as
    prepare does, so that it leaves a head without CPUs alone; 0 for those that start workers."""

    def __post_init__(self) -> None:
        check_ranges(self, driver_cpus=(0, MOST_CPUS))


@dataclass(frozen=True)
class JobArguments(OfCluster):
    """One job of a cluster."""

    job: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """The job's id, as `tandem submit` printed it."""


@dataclass(frozen=True)
class LogsArguments(JobArguments):
    """A job's output so far."""

    follow: bool = False
    """Go on until the job ends."""


@dataclass(frozen=True)
class StopArguments(JobArguments):
    """End a job: a run writes a checkpoint first."""

    detach: bool = False
    """Do not wait for the end."""


@dataclass(frozen=True)
class StatusArguments(OfCluster):
    """Jobs of a cluster, or the state of a run."""

    job: Annotated[str | None, tyro.conf.Positional] = None
    """A job's id, the folder or URI of a run, or a folder that has runs below it. Left out:
    Tandem's jobs on the cluster that --address or the environment names; where neither does, the
    newest runs below this folder."""


def submit(arguments: Sequence[str]) -> int:
    """Submit, and follow to the end unless detached. Exit status: the job's."""
    flags, given = split_command(arguments)
    parsed = parse(SubmitArguments, "tandem submit", flags)
    check_command(given, Path(parsed.working_dir))
    command = going_on(given)
    environment = runtime_env(Path(parsed.working_dir))
    environment["env_vars"] |= variables_of(parsed.env)
    cluster = connect(parsed.address)
    if "py_modules" in environment:
        environment["py_modules"].append(uploaded_module(cluster.client, START))
    python = parsed.python or interpreter(cluster)
    try:
        job = cluster.client.submit_job(
            entrypoint=shlex.join([python, "-m", "tandem", *command]),
            runtime_env=environment,
            metadata={"tandem": shlex.join(command)},
            entrypoint_num_cpus=driver_cpus(command[0], parsed.driver_cpus),
        )
    except RuntimeError as error:
        raise Mistake(refusal_message(cluster.address, error)) from error
    remember(Submitted(job, cluster.address, tuple(command), run_of(command)))
    say(f"job {job} on {cluster.address}")
    if parsed.detach:
        go_on = ["logs", job, "--follow", "--address", cluster.address]
        say("next:", command=["tandem", *go_on])
        return 0
    return follow(cluster, job)


def status(arguments: Sequence[str]) -> int:
    """One job's state, or a line for each of ours; or how far a run has come, by its folder."""
    parsed = parse(StatusArguments, "tandem status", arguments)
    if parsed.job is not None and is_folder_of_runs(parsed.job):
        show_newest(Path(parsed.job), "another folder")
        return 0
    if parsed.job is not None and ("/" in parsed.job or Path(parsed.job).is_dir()):
        state = read_state(parsed.job, watches=True)
        say(state.describe())
        return 1 if state.phase in ("stopped", "failed") else 0
    if parsed.job is None and find_dashboard(parsed.address).is_default:  # no cluster is named
        jobs = f"--address {DEFAULT_ADDRESS}"
        show_newest(Path(), f"a cluster, whose jobs are shown ({jobs} is this machine's)")
        say("jobs of this machine's cluster:", command=["tandem", "status", *jobs.split()])
        return 0
    cluster = connect(parsed.address)
    known = {job.submission_id: job for job in cluster.client.list_jobs()}
    lost = [job for job in remembered(cluster.address) if job.job not in known]
    if parsed.job is not None:
        for job in lost:
            if job.job == parsed.job:
                print_lost(job)
                return EXIT_STATUS[JobStatus.FAILED]
        details = find_job(cluster.client, parsed.job)
        say(f"{parsed.job}  {details.status.value}  {first_line(details.message)}")
        return EXIT_STATUS.get(details.status, 0)
    ours = [job for job in known.values() if "tandem" in (job.metadata or {})]
    for job in sorted(ours, key=lambda job: job.start_time or 0):
        say(f"{job.submission_id}  {job.status.value:10}  tandem {job.metadata['tandem']}")
    for job in lost:
        print_lost(job)
    if not ours and not lost:
        say(f"no job of Tandem's on {cluster.address}")
    return 0


def print_lost(job: Submitted) -> None:
    """A job that its cluster has forgotten: what its run says, and how to go on with it."""
    say(f"{job.job}  {'LOST':10}  tandem {shlex.join(job.command)}")
    say("    its cluster was restarted since and has forgotten it")
    if job.run is None:
        return
    try:
        state = read_state(job.run)
    except (ValueError, OSError) as error:
        say(f"    its run cannot be read from here: {error}")
        return
    say(f"    {state.describe()}")
    if state.phase in ("stopped", "failed"):
        again = ["--address", job.address, "--", "resume", job.run]
        say("    go on:", command=["tandem", "submit", *again])


def logs(arguments: Sequence[str]) -> int:
    """A job's output."""
    parsed = parse(LogsArguments, "tandem logs", arguments)
    cluster = connect(parsed.address)
    find_job(cluster.client, parsed.job)
    if parsed.follow:
        return follow(cluster, parsed.job)
    print(cluster.client.get_job_logs(parsed.job), end="")
    return 0


def stop(arguments: Sequence[str]) -> int:
    """Have a job end, wait for that, and say what its run has saved."""
    parsed = parse(StopArguments, "tandem stop", arguments)
    cluster = connect(parsed.address)
    details = find_job(cluster.client, parsed.job)
    if not cluster.client.stop_job(parsed.job):
        raise Mistake(f"job {parsed.job} is {details.status.value} already")
    say(f"stopping {parsed.job}: {what_stopping_takes(details)}")
    if parsed.detach:
        return 0
    try:
        while not details.status.is_terminal():
            time.sleep(LOOK_SECONDS)
            details = find_job(cluster.client, parsed.job)
    except KeyboardInterrupt:
        say()
        look = told_of(cluster, "status", parsed.job)
        say(f"{parsed.job} goes on ending; look with:", command=look)
        return 130
    say(f"{parsed.job} is {details.status.value}")
    for line in saved_by(details):
        say(line)
    return 0


def what_stopping_takes(details: JobDetails) -> str:
    """How long a job has, and what it does in that time."""
    environment = (details.runtime_env or {}).get("env_vars", {})
    seconds = environment.get(JOB_STOP_VARIABLE, JOB_STOP_SECONDS)
    return f"a run writes a checkpoint first; what is not over in {seconds} seconds is killed"


def saved_by(details: JobDetails) -> list[str]:
    """A line on what the run of a job that ended has saved; none where it trained no run."""
    run = run_of(shlex.split((details.metadata or {}).get("tandem", "")))
    if run is None:
        return []
    try:
        return [read_state(run).describe()]
    except (ValueError, OSError) as error:
        return [f"its run cannot be read from here: {error}"]


def going_on(command: Sequence[str]) -> list[str]:
    """The command, a training's with `--resume auto` unless it says otherwise: the same job is
    given again after whatever befell its cluster."""
    if command[0] != "train" or any(flag.partition("=")[0] == "--resume" for flag in command):
        return list(command)
    return [*command, "--resume", "auto"]


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of `submit` before `--`, the command after it."""
    if "--" in arguments:
        at = list(arguments).index("--")
        return list(arguments[:at]), list(arguments[at + 1 :])
    return list(arguments), []
