"""Beside a running group: what the driver does until the group is over.

Ray Train runs in a thread of its own, and the main thread is here, where signals reach it. It asks
the group to stop when the driver is told to end, when one of the group's nodes is about to leave,
or when the group could grow; and it gives up a group that the cluster never starts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.util

from cluster.workers.elastic import LOOK_SECONDS, REMIND_SECONDS
from cluster.workers.failures import RunFailedError
from cluster.workers.pulses import Beat
from cluster.workers.relay import GLANCE_SECONDS, LOADING_SECONDS, Look, RelayLink
from trainer.base.stopping import Told
from trainer.observe.progress import Progress

CONDEMNED_SECONDS = 10.0
"""So long condemned ranks have to end by themselves."""
START_SECONDS = 600.0
"""Workers that have no place for so long are not waited for any longer."""


class InThread(threading.Thread):
    """A function in a thread; `over` is set once it has ended, and `result` is what came out."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(name="tandem-fit", daemon=True)
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        finally:
            self.over.set()

    def result(self) -> Any:
        """What the function returned, or what it raised."""
        if self._error is not None:
            raise self._error
        return self._result


def is_waiting_for_place() -> bool:
    """Whether Ray has workers to place, and nowhere to. Imports apart, they start at once."""
    try:
        groups = ray.util.placement_group_table().values()
    except (ray.exceptions.RayError, ConnectionError, RuntimeError):  # it does not answer
        return False
    return any(group["state"] in ("PENDING", "RESCHEDULING") for group in groups)


class GroupWatch:
    """Watches one group.

    Args:
        told: set when the driver is told to end.
        could_grow: whether there is room for more workers.
        look_every_seconds: between two questions of `could_grow`.
        can_stop: the work can be stopped at a checkpoint; any other ends with the driver.
        go_on: what the user does where it is given up.
    """

    def __init__(
        self,
        link: RelayLink,
        group: int,
        count: int,
        told: Told,
        could_grow: Callable[[], bool],
        look_every_seconds: float,
        progress: Progress,
        can_stop: bool = True,
        go_on: str = "go on with --resume",
    ) -> None:
        self._link = link
        self._group, self._count = group, count
        self._told = told
        self._could_grow = could_grow
        self._look_every_seconds = look_every_seconds
        self._progress = progress
        self._can_stop, self._go_on = can_stop, go_on
        self._stopping = False
        self._condemned_at = 0.0
        self.grows = False
        """Whether it asked for room to grow."""
        self.last: Look | None = None
        """The last look at the group's ranks that was answered."""

    def until(self, over: threading.Event) -> None:
        """Until the group is over.

        Raises:
            Terminated: where the driver is told to end before any worker runs, or work that
                cannot stop.
            RunFailedError: where no worker has a place within START_SECONDS, or speaks within
                LOADING_SECONDS.
            KeyboardInterrupt: on a second Ctrl-C.
        """
        started = looked = grown = reminded = time.monotonic()
        has_place = True
        while not over.wait(GLANCE_SECONDS):
            now = time.monotonic()
            if self._told.is_set() and not self._can_stop:
                raise self._told.ended("")
            if now - looked < LOOK_SECONDS and not (self._told.is_set() and not self._stopping):
                continue
            looked = now
            self.last = self._link.look(self._group, self._count) or self.last
            self._end_condemned(now)
            beats = () if self.last is None else self.last.beats
            began = bool(beats)
            if not began and not over.is_set():
                self._check_start(now - started, has_place)
                if now - reminded >= REMIND_SECONDS:
                    reminded, has_place = now, not is_waiting_for_place()
            if all(beat.phase == "starting" for beat in beats) and not over.is_set():
                self._progress.waiting(self._waited_for(beats, has_place), now - started)
            if not self._stopping and now - grown >= self._look_every_seconds:
                grown = now
                self.grows = began and self._could_grow()
            if self._can_stop and (self._wants_to_stop() or self._stopping):
                self._stop()

    def _end_condemned(self, now: float) -> None:
        """Ranks that beat hear the verdict and end. One that hangs when the others have left, or
        all that hang, do not."""
        if self.last is None or self.last.verdict is None:
            return
        self._condemned_at = self._condemned_at or now
        if now - self._condemned_at > CONDEMNED_SECONDS:
            self._condemned_at = now
            for beat in self.last.remaining:
                self._link.end(beat)

    @property
    def _workers(self) -> str:
        return f"{self._count} worker{'s' if self._count > 1 else ''}"

    def _waited_for(self, beats: Sequence[Beat], has_place: bool) -> str:
        """Of a group none of whose ranks trains yet."""
        if not has_place and not beats:
            return f"waiting: the cluster has no place for {self._workers}"
        if len(beats) < self._count:
            return f"starting: {len(beats)} of {self._workers} up, each loads torch first"
        return f"starting: {self._workers} up, reading data and building the model"

    def _check_start(self, waited: float, has_place: bool) -> None:
        """Of a group none of whose workers runs yet."""
        if self._told.is_set():
            raise self._told.ended(f" before {self._workers} had started; nothing is lost")
        if waited > START_SECONDS and not has_place:
            raise RunFailedError(
                f"the cluster did not start {self._workers} within {START_SECONDS:.0f} s: it has "
                f"no place for them (`ray status` says what is free); {self._go_on}",
                retry=False,
            )
        if waited > LOADING_SECONDS:
            raise RunFailedError(
                f"{self._workers} have a place, but none was heard of within "
                f"{LOADING_SECONDS:.0f} s: their machines have too much else to do, or do not get "
                f"on with reading Tandem and torch; {self._go_on}",
                retry=False,
            )

    def _wants_to_stop(self) -> bool:
        leaves = self.last is not None and self.last.leaving
        if leaves or self._told.is_set():
            self.grows = False
        return leaves or self._told.is_set() or self.grows

    def _stop(self) -> None:
        """Ask again and again: an answer may be lost, and a relay that is started anew forgets."""
        if not self._stopping and self._told.is_set():
            again = "; Ctrl-C again ends at once" if self._told.by == "Ctrl-C" else ""
            self._progress.message(f"stopping: a checkpoint is written first{again}")
        self._stopping = True
        self._link.ask_to_stop(self._group)
