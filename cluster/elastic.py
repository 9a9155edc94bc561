"""How many workers a group gets: as many as there is room for, within `--workers LEAST..MOST`.

The number must divide the global batch, so that the curve does not depend on it. A group shrinks
when it is started anew after a failure, on what is left; it grows by being asked to stop at a
checkpoint and started anew, so no step is trained twice.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType

import ray

from cluster.failures import RunFailedError
from cluster.workers import Workers
from trainer.mistake import Mistake
from trainer.progress import Progress

LOOK_SECONDS = 1.0
REMIND_SECONDS = 30.0
SETTLE_SECONDS = 20.0
"""Ray may take seconds to tell that the workers of a group that ended are free."""


def choose(workers: Workers, room: int, global_batch_size: int) -> int | None:
    """The largest number allowed that has room and divides the global batch; None: none does."""
    for count in range(min(workers.most, room), workers.least - 1, -1):
        if global_batch_size % count == 0:
            return count
    return None


def check_divides(workers: Workers, global_batch_size: int) -> None:
    """Raise where no number in the range could ever be used."""
    if choose(workers, workers.most, global_batch_size) is None:
        raise Mistake(
            f"--workers {workers}: training.global_batch_size {global_batch_size} divides by none "
            "of these; choose another of the two"
        )


def free_room(unit: str) -> int:
    """Workers that could start now: one a free GPU or CPU of the cluster."""
    return int(ray.available_resources().get(unit, 0))


def wait_for_room(
    workers: Workers,
    global_batch_size: int,
    unit: str,
    progress: Progress,
    patience_seconds: float,
    hoped: int = 0,
    room: Callable[[str], int] = free_room,
) -> int:
    """The number of workers to start, once there is room for the least of them.

    What a worker group that ended has used comes back after a moment: two looks must agree
    before fewer than the most are started.

    Args:
        hoped: a number that there was room for while another group ran; fewer are started only
            after SETTLE_SECONDS.

    Raises:
        RunFailedError: after `patience_seconds` without room.
    """
    started, reminded, before = time.monotonic(), 0.0, -1
    while True:
        there = room(unit)
        count = choose(workers, there, global_batch_size)
        waited = time.monotonic() - started
        settled = there == before and ((count or 0) >= hoped or waited > SETTLE_SECONDS)
        if count is not None and (there >= workers.most or settled):
            return count
        if waited > patience_seconds:
            raise RunFailedError(
                f"no room for {workers.least} workers in {patience_seconds:.0f} s: the cluster "
                f"has {there} free {unit}s; add nodes and go on with --resume",
                retry=False,
            )
        if count is None and waited - reminded >= REMIND_SECONDS:
            reminded = waited
            progress.message(f"waiting for {workers.least} workers: {there} {unit}s are free")
        before = there
        time.sleep(LOOK_SECONDS)


class GroupWatch:
    """Beside a running group: asks it to stop when the driver is told to end, when one of its nodes
    is about to leave, or when it could grow.

    A context manager around the group's life.

    Args:
        ask_to_stop: makes every rank write a checkpoint and return; called at most once.
        terminated: set when the driver got SIGTERM.
        leaving: whether one of the group's nodes will be taken away.
        could_grow: whether there is room for more workers.
        look_every_seconds: between two questions of `could_grow`.
    """

    def __init__(
        self,
        ask_to_stop: Callable[[], None],
        terminated: threading.Event,
        leaving: Callable[[], bool],
        could_grow: Callable[[], bool],
        look_every_seconds: float,
    ) -> None:
        self._ask_to_stop = ask_to_stop
        self._terminated = terminated
        self._leaving = leaving
        self._could_grow = could_grow
        self._look_every_seconds = look_every_seconds
        self.grows = False
        """Whether it asked for room to grow."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tandem-group-watch", daemon=True)

    def __enter__(self) -> "GroupWatch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        looked = glanced = time.monotonic()
        while not self._over.wait(0.2):
            grow = leave = False
            if time.monotonic() - glanced >= LOOK_SECONDS:
                glanced = time.monotonic()
                leave = self._leaving()
            if time.monotonic() - looked >= self._look_every_seconds:
                looked = time.monotonic()
                grow = self._could_grow()
            if grow or leave or self._terminated.is_set():
                self.grows = grow and not leave
                self._ask_to_stop()
                return
