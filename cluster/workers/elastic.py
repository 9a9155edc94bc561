"""How many workers a group gets: as many as there is room for, within `--workers LEAST..MOST`.

The number must divide the global batch, so that the curve does not depend on it. A group shrinks
when it is started anew after a failure, on what is left; it grows by being asked to stop at a
checkpoint and started anew, so no step is trained twice.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from cluster.workers.counts import Workers
from cluster.workers.failures import RunFailedError
from trainer.base.mistake import Mistake
from trainer.base.stopping import Told
from trainer.observe.progress import Progress

logger = logging.getLogger(__name__)
ANY_NUMBER = 0
"""A batch that every number of workers divides."""
LOOK_SECONDS = 1.0
NOTICE_SECONDS = 5.0
REMIND_SECONDS = 30.0
SETTLE_SECONDS = 20.0
"""Ray may take seconds to tell that the workers of a group that ended are free."""
REPEAT_SECONDS = 20.0
LAPSE_SECONDS = 180.0
"""What is asked of the autoscaler lapses, unless it is repeated: a driver may be killed."""
ANSWER_SECONDS = 5.0


@dataclass
class Demand:
    """What a run asks of the cluster's autoscaler, beside the workers that it has.

    Ray's coordinator adds up what all runs ask for. A cluster without an autoscaler keeps what it
    has: asking changes nothing there.
    """

    coordinator: Any
    """Its actor; None: a cluster of our own, which cannot grow."""
    _name: str = field(default_factory=lambda: f"tandem-{uuid.uuid4().hex[:12]}", init=False)
    _asked: tuple[int, bool] = field(default=(0, False), init=False)
    _at: float = field(default=float("-inf"), init=False)

    def want(self, count: int, on_gpu: bool) -> None:
        """Ask for `count` workers more; cheap where that has just been asked."""
        fresh = time.monotonic() - self._at < REPEAT_SECONDS
        if self.coordinator is None or (self._asked == (count, on_gpu) and (fresh or not count)):
            return
        if count == 0:
            answer = self.coordinator.cancel_request.remote(self._name)
        else:
            answer = self.coordinator.request_resources.remote(
                requester_id=self._name,
                resources=[worker_resources(on_gpu)] * count,
                expire_after_s=LAPSE_SECONDS,
            )
        self._asked, self._at = (count, on_gpu), time.monotonic()
        try:
            ray.get(answer, timeout=ANSWER_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as error:  # asked again later
            logger.warning("the autoscaler could not be asked for %d workers: %s", count, error)


def worker_resources(on_gpu: bool) -> dict[str, float]:
    """What one worker takes of a node."""
    return {"GPU": 1, "CPU": 1} if on_gpu else {"CPU": 1}


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
    started, told_of, before = time.monotonic(), False, -1
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
        if count is None and waited > NOTICE_SECONDS:
            words = f"waiting for {workers.least} workers: {found}"
            progress.waiting(words, waited if told_of else 0.0)
            told_of = True
        waiting()
        before = -1 if there is None else there
        told.wait(LOOK_SECONDS)
