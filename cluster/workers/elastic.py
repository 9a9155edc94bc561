"""How many workers a group gets: as many as there is room for, within `--workers LEAST..MOST`.

The number must divide the global batch, so that the curve does not depend on it. A group shrinks
when it is started anew after a failure, on what is left; it grows by being asked to stop at a
checkpoint and started anew, so no step is trained twice.
"""

import time
from collections.abc import Callable

from cluster.workers.counts import Workers
from cluster.workers.failures import RunFailedError
from trainer.base.mistake import Mistake
from trainer.base.stopping import Told
from trainer.observe.progress import Progress

ANY_NUMBER = 0
"""A batch that every number of workers divides."""
LOOK_SECONDS = 1.0
NOTICE_SECONDS = 5.0
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


def wait_for_room(
    workers: Workers,
    global_batch_size: int,
    unit: str,
    progress: Progress,
    patience_seconds: float,
    room: Callable[[], int | None],
    told: Told,
    hoped: int = 0,
    go_on: str = "go on with --resume",
    waiting: Callable[[], None] = lambda: None,
) -> int:
    """The number of workers to start, once there is room for the least of them.

    What a worker group that ended has used comes back after a moment: two looks must agree
    before fewer than the most are started.

    Args:
        unit: "CPU" or "GPU", for the user's eyes.
        room: workers that could start now; None: the cluster does not answer.
        told: set when the driver is told to end.
        hoped: a number that there was room for while another group ran; fewer are started only
            after SETTLE_SECONDS.
        go_on: what the user does where there is no room.
        waiting: told at each look that found too little.

    Raises:
        RunFailedError: after `patience_seconds` without room.
        Terminated: where the driver is told to end while it waits.
    """
    started, reminded, before = time.monotonic(), -REMIND_SECONDS, -1
    while True:
        there = room()
        count = None if there is None else choose(workers, there, global_batch_size)
        waited = time.monotonic() - started
        settled = there == before and ((count or 0) >= hoped or waited > SETTLE_SECONDS)
        if count is not None and there is not None and (there >= workers.most or settled):
            return count
        found = "the cluster does not answer" if there is None else f"{there} {unit}s are free"
        if told.is_set():
            raise told.ended(f" while waiting for {workers.least} workers: {found}")
        if waited > patience_seconds:
            raise RunFailedError(
                f"no room for {workers.least} workers in {patience_seconds:.0f} s (--patience): "
                f"{found}; add nodes or wait for other work to end, and {go_on}",
                retry=False,
            )
        if count is None and waited > NOTICE_SECONDS and waited - reminded >= REMIND_SECONDS:
            reminded = waited
            progress.message(f"waiting for {workers.least} workers: {found}")
        waiting()
        before = -1 if there is None else there
        told.wait(LOOK_SECONDS)
