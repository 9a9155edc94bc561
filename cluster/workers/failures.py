"""One message for a failed run: the first cause, not what followed from it on other ranks."""

import re
import time
from collections.abc import Iterable, Mapping

import ray
import ray.exceptions
from ray.train import ControllerError, WorkerGroupError

from cluster.workers.pulses import Beat
from cluster.workers.ray_private import health_check_error
from trainer.base.mistake import Mistake
from trainer.launch.causes import Gravity, WorkFailedError, is_consequence
from trainer.launch.shared_memory import with_remedy

MOST_LINES = 3
EXIT_DETAIL = "Worker exit detail: "
"""What Ray says before how a process ended, where somebody saw it end."""
MISSED_SECONDS = 20.0
"""Ray knows of a killed node within seconds, where its connection breaks; else once five questions,
3 s apart, were not answered (health_check_period_ms, health_check_failure_threshold)."""


class RunFailedError(WorkFailedError):
    """Work on Ray that ended by a failure; the message is the first cause.

    Args:
        retry: worth a restart.
        is_consequence: it is mere hearsay of what happened to a worker elsewhere.
    """

    def __init__(self, message: str, retry: bool, is_consequence: bool = False) -> None:
        super().__init__(message)
        self.retry = retry
        self.is_consequence = is_consequence


def first_cause(error: Exception) -> RunFailedError | Mistake:
    """The cause in what `TorchTrainer.fit` raised.

    A Mistake is the user's mistake and comes back as it is. Anything else becomes a
    `RunFailedError`: the same failure on every rank is told once.
    """
    failures = worker_failures(error)
    rank, cause = min(failures.items(), key=lambda failure: (_gravity(failure[1]), failure[0]))
    if _is_mistake(cause):
        return Mistake(str(cause))
    if isinstance(cause, ray.exceptions.RayActorError):
        told = f"{_rank_name(rank)}worker process died: {_death(cause)}"
        hearsay = EXIT_DETAIL not in str(cause)  # its node may be gone, too
        return RunFailedError(told, retry=True, is_consequence=hearsay)
    text = _short(str(cause)) or type(cause).__name__
    told_alike = all(str(other) == str(cause) for other in failures.values())
    prefix = "" if told_alike and len(failures) > 1 else _rank_name(rank)
    return RunFailedError(
        with_remedy(f"{prefix}{type(cause).__name__}: {text}", str(cause)),
        retry=_is_retryable(cause),
        is_consequence=is_consequence(cause),
    )


def lost_nodes(beats: Iterable[Beat], patiently: bool) -> str:
    """Which of the nodes that these ranks were on have gone; empty where all are there.

    Args:
        patiently: a node that is killed is missed after seconds; wait so long.
    """
    ranks = list(beats)
    deadline = time.monotonic() + (MISSED_SECONDS if patiently else 0.0)
    while True:
        try:
            nodes = ray.nodes()
        except (ray.exceptions.RayError, ConnectionError, RuntimeError):
            return ""  # the cluster does not answer
        gone = {node["NodeID"]: node for node in nodes if not node["Alive"]}
        told = [
            f"node {gone[node]['NodeManagerAddress']} went away, and with it "
            + ", ".join(f"rank {beat.rank} ({beat.where})" for beat in ranks if beat.node == node)
            for node in sorted({beat.node for beat in ranks} & set(gone))
        ]
        if told or time.monotonic() > deadline:
            return "; ".join(told)
        time.sleep(0.5)


def worker_failures(error: Exception) -> Mapping[int, BaseException]:
    """The exception of each rank that failed; rank -1 where Ray does not say which."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return {rank: _unwrapped(cause) for rank, cause in error.worker_failures.items()}
    if isinstance(error, ControllerError):
        return {-1: _unwrapped(error.controller_failure)}
    return {-1: _unwrapped(error)}


def _unwrapped(error: BaseException) -> BaseException:
    """The user's exception inside Ray's wrapping of it."""
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        return _unwrapped(error.cause)
    if isinstance(error, health_check_error()):
        return _unwrapped(error.health_check_failure)
    return error


def _is_mistake(error: BaseException) -> bool:
    return isinstance(error, Mistake) and not isinstance(error, ray.exceptions.RayError)


def _is_retryable(error: BaseException) -> bool:
    """Not where the same start would fail the same way: a bug, or a value that is not finite."""
    deterministic = (TypeError, KeyError, AttributeError, AssertionError, ImportError)
    return not isinstance(error, deterministic) and type(error).__name__ != "NonFiniteError"


def _gravity(error: BaseException) -> Gravity:
    if _is_mistake(error):
        return Gravity.MISTAKE
    if isinstance(error, ray.exceptions.RayActorError):
        return Gravity.DEATH
    return Gravity.CONSEQUENCE if is_consequence(error) else Gravity.FAULT


def _rank_name(rank: int) -> str:
    return f"rank {rank}: " if rank >= 0 else ""


def _death(error: ray.exceptions.RayActorError) -> str:
    """Why a worker process died, as short as Ray's account allows."""
    text = str(error)
    found = re.search(rf"{EXIT_DETAIL}(.*?)(?: Some common causes|\n|$)", text)
    detail = found.group(1) if found else _short(text)
    if "OOM" in detail or "memory" in detail.split("common causes")[0]:
        return f"{detail} (out of memory: lower training.global_batch_size, or add workers)"
    return with_remedy(detail) or "no reason given"


def _short(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " ".join(lines[:MOST_LINES])
