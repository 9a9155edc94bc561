"""The job API of a cluster: which cluster is meant, whether it answers, and what runs there.

What the user says on the command line counts before what the environment says, before this machine.
Ray's own client has it the other way round, so it is shown no variables.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import ray.exceptions
import requests
from ray.job_submission import JobDetails, JobSubmissionClient

from cluster.workers.ray_private import PACKING_LOGGERS, token_headers
from cluster.workers.session import asks_for_a_token, token_message, without_variables
from trainer.base.mistake import Mistake

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
BY_DEFAULT = "the default"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_SECONDS = 10.0
PROCESSES = Path("/proc")


@dataclass(frozen=True)
class Dashboard:
    """A cluster's dashboard, and who named it."""

    address: str
    named_by: str
    """--address, a variable, or BY_DEFAULT."""

    @property
    def is_default(self) -> bool:
        """Whether nobody has named it."""
        return self.named_by == BY_DEFAULT

    def __str__(self) -> str:
        return f"{self.address} ({self.named_by})"


@dataclass(frozen=True)
class JobCluster:
    """A cluster that answers."""

    address: str
    client: JobSubmissionClient
    session: str
    """Ray's name of this start of the cluster."""


def find_dashboard(address: str | None, environment: Mapping[str, str] = os.environ) -> Dashboard:
    """Which dashboard is meant: --address, else the environment's, else this machine's.

    Raises Mistake where it is no http address.
    """
    named = [("--address", address), *((name, environment.get(name)) for name in VARIABLES)]
    for name, text in named:
        if not text:
            continue
        if not is_web_address(text):
            raise Mistake(
                f"{name} {text}: jobs go to a cluster's dashboard, as --address http://HEAD:8265"
            )
        return Dashboard(text.rstrip("/"), name)
    return Dashboard(DEFAULT_ADDRESS, BY_DEFAULT)


def is_web_address(text: str) -> bool:
    """Whether it is http://HOST or https://HOST, with a port that there can be, or none."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port above 65535, half a bracket
        return False


def connect(address: str | None) -> JobCluster:
    """The job API that is meant. Raises Mistake that says what to set or start."""
    dashboard = find_dashboard(address)
    session = ask_for_session(dashboard)
    for name in (*PACKING_LOGGERS, JobSubmissionClient.__module__):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with without_variables(*VARIABLES):
            client = JobSubmissionClient(dashboard.address)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise Mistake(silent_message(dashboard, error)) from error
    return JobCluster(dashboard.address, client, session)


def ask_for_session(dashboard: Dashboard) -> str:
    """Ray's name of the cluster's session; empty where it asks for another token, or for one."""
    try:
        url = f"{dashboard.address}/api/version"
        answer = requests.get(url, headers=token_headers(), timeout=ANSWER_SECONDS)
        if answer.status_code in (401, 403):
            return ""
        answer.raise_for_status()
        return str(answer.json()["session_name"])
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise Mistake(silent_message(dashboard, error)) from error


def silent_message(dashboard: Dashboard, error: Exception) -> str:
    """What to do where no job API answers."""
    if asks_for_a_token(error):
        return token_message(str(dashboard), error)
    refused = isinstance(error, requests.ConnectionError | requests.Timeout | ConnectionError)
    found = "nothing answers" if refused else "what answers is no dashboard of Ray's"
    return (
        f"no Ray cluster takes jobs at {dashboard}: {found}; start one with `ray start --head`, or "
        "name another's dashboard with --address http://HEAD:8265"
    )


def is_here(session: str, processes: Path = PROCESSES) -> bool:
    """Whether the head of the cluster with this session runs on this very machine.

    An address says little: 127.0.0.1 may be a tunnel to a cluster far away.
    """
    return bool(session) and any(
        b"gcs_server" in words and session.encode() in words for words in command_lines(processes)
    )


def command_lines(processes: Path) -> Iterator[bytes]:
    """Of the processes of this machine that may be read."""
    for file in processes.glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes()
        except OSError:  # it has just ended
            continue


def interpreter(cluster: JobCluster) -> str:
    """The Python of a job: this one where the cluster's head is this machine, else its own."""
    return sys.executable if is_here(cluster.session) else "python"


def find_job(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the cluster knows of `job`."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise Mistake(f"no job {job} on this cluster; `tandem status` lists jobs") from error
