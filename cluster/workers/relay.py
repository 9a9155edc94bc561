"""From the workers to the driver: progress, metrics addresses, heartbeats.

Workers run anywhere on the cluster and have no terminal. A small actor on the driver's node
gathers what they say; the driver reads it a few times a second and shows it.

    worker: RelayProgress --put--> Relay (actor) --take--> RelayReader (thread) :driver
                                                 <--look-- RelayLink :driver

Ray starts the actor anew where it dies, under the same handle, with nothing in its memory: every
look tells it which group it serves. An event is kept until the driver says that it has it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.workers.pulses import Answer, Beat, Pulses
from cluster.workers.ray_private import draining_nodes, free_by_node
from trainer.base.stopping import Told

READ_SECONDS = 0.25
SEND_SECONDS = 0.2
ANSWER_SECONDS = 5.0
BEGIN_SECONDS = 120.0
GLANCE_SECONDS = 0.2
LOADING_SECONDS = 3600.0
"""So long a process that Ray has placed may take to load: on a machine that starves it it is many
minutes, and a run that begins late is none that failed."""
MOST_EVENTS = 10_000

Event = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Name of a handler, and its arguments."""


@dataclass(frozen=True)
class Receipt:
    """The last event that the driver has: of which start of the actor, and its number there."""

    start: str = ""
    number: int = -1


@dataclass(frozen=True)
class Look:
    """What the driver wants to know once a second."""

    beats: tuple[Beat, ...]
    """Of the ranks heard so far."""
    verdict: str | None
    leaving: bool
    """One of the group's nodes will be taken away."""
    remaining: tuple[Beat, ...] = ()
    """Of the ranks heard so far whose work is not over."""


class Relay:
    """The actor: a bounded queue of events, the oldest updates dropped first, and the pulses."""

    def __init__(self, step_timeout_seconds: float) -> None:
        self._start = uuid.uuid4().hex
        self._number = 0
        self._events: deque[tuple[int, Event]] = deque()
        self._pulses = Pulses(step_timeout_seconds)

    def put(self, group: int, name: str, *args: Any, **kwargs: Any) -> None:
        """Keep an event for the driver; not of a group that went before."""
        if group != self._pulses.group:
            return
        if len(self._events) >= MOST_EVENTS:
            oldest = (event for event in self._events if event[1][0] == "update")
            self._events.remove(next(oldest, self._events[0]))
        self._events.append((self._number, (name, args, kwargs)))
        self._number += 1

    def take(self, receipt: Receipt) -> tuple[str, list[tuple[int, Event]]]:
        """This start's name, and every event after the receipt's, which are kept until then."""
        if receipt.start == self._start:
            while self._events and self._events[0][0] <= receipt.number:
                self._events.popleft()
        return self._start, list(self._events)

    def begin(self, group: int, count: int) -> None:
        if group != self._pulses.group:
            self._pulses.begin(group, count)

    def ask_to_stop(self, group: int) -> None:
        self._pulses.ask_to_stop(group)

    def beat(self, group: int, beat: Beat) -> Answer:
        return self._pulses.beat(group, beat)

    def look(self, group: int, count: int) -> Look:
        """How the group is; a relay that was started anew begins with it."""
        self.begin(group, count)
        beats = tuple(self._pulses.beats)
        leaving = not draining_nodes().isdisjoint(beat.node for beat in beats)
        verdict = self._pulses.judge() if beats else None
        return Look(beats, verdict, leaving, tuple(self._pulses.remaining))

    def leave(self, group: int, rank: int) -> None:
        self._pulses.leave(group, rank)

    def room(self, on_gpu: bool) -> int:
        """Workers that could start now, node by node: one a free CPU, or a free GPU with a CPU."""
        return sum(
            min(int(free.get("GPU", 0)), int(free.get("CPU", 0)))
            if on_gpu
            else int(free.get("CPU", 0))
            for free in free_by_node()
        )


def start_relay(step_timeout_seconds: float) -> Any:
    """The relay's handle, on this node: it must not go away with a worker's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
    return ray.remote(Relay).options(**options).remote(step_timeout_seconds)


def kill(pid: int) -> None:
    """A task of Ray, which takes no built-in function for one."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class RelayLink:
    """The driver's questions to the relay. One that goes unanswered is no reason to end a run."""

    def __init__(self, relay: Any) -> None:
        self.relay = relay

    def wait_until_up(self, told: Told) -> None:
        """Raises RayError where the relay is not started at all, Terminated where the driver is
        told to end."""
        up, deadline = self.relay.take.remote(Receipt()), time.monotonic() + LOADING_SECONDS
        while True:
            try:
                ray.get(up, timeout=GLANCE_SECONDS)
                return
            except ray.exceptions.GetTimeoutError:
                if told.is_set():
                    raise told.ended(" before any worker had started; nothing is lost") from None
                if time.monotonic() > deadline:
                    raise

    def begin(self, group: int, count: int) -> None:
        """Listen to a new group. Raises RayError where the relay does not answer at all."""
        ray.get(self.relay.begin.remote(group, count), timeout=BEGIN_SECONDS)

    def ask_to_stop(self, group: int) -> None:
        """Have every rank write a checkpoint and return. To be repeated: it may be lost."""
        self._answer(self.relay.ask_to_stop.remote(group))

    def look(self, group: int, count: int) -> Look | None:
        """How the group is; None: no answer."""
        found: Look | None = self._answer(self.relay.look.remote(group, count))
        return found

    def end(self, beat: Beat) -> None:
        """SIGKILL to a rank's process, on its node: one that hangs hears nothing else."""
        there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
        ending: Any = ray.remote(kill)
        ending = ending.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        self._answer(ending.remote(beat.pid))

    def room(self, on_gpu: bool) -> int | None:
        """Workers that could start now; None: no answer."""
        found: int | None = self._answer(self.relay.room.remote(on_gpu))
        return found

    def _answer(self, question: Any) -> Any:
        try:
            return ray.get(question, timeout=ANSWER_SECONDS)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return None


class RelayProgress:
    """A worker's `Progress`: sends to the relay and never waits for it.

    Updates closer than SEND_SECONDS to the last one are dropped, apart from the final one.
    """

    def __init__(self, relay: Any, group: int) -> None:
        self._relay = relay
        self._group = group
        self._sent: dict[str, float] = {}

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        now = time.monotonic()
        if done != total and now - self._sent.get(name, float("-inf")) < SEND_SECONDS:
            return
        self._sent[name] = now
        self._relay.put.remote(self._group, "update", name, done, total, **values)

    def message(self, text: str) -> None:
        self._relay.put.remote(self._group, "message", text)

    def waiting(self, words: str | None, seconds: float = 0.0) -> None:
        self._relay.put.remote(self._group, "waiting", words, seconds)

    def close(self) -> None:
        """The driver ends its own display."""


class RelayLog(logging.Handler):
    """Sends a worker's own errors (a damaged checkpoint, for one) to the user's terminal."""

    def __init__(self, relay: Any, group: int) -> None:
        super().__init__(logging.ERROR)
        self._relay = relay
        self._group = group

    def emit(self, record: logging.LogRecord) -> None:
        self._relay.put.remote(self._group, "message", record.getMessage())


class RelayReader:
    """Reads the relay in a thread and calls the handler of each event, in order, once.

    A context manager; leaving it reads what is left.
    """

    def __init__(self, relay: Any, handlers: dict[str, Callable[..., None]]) -> None:
        self._relay = relay
        self._handlers = handlers
        self._receipt = Receipt()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tandem-relay", daemon=True)

    def __enter__(self) -> RelayReader:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * ANSWER_SECONDS)
        self.read()

    def _run(self) -> None:
        while not self._stop.wait(READ_SECONDS):
            self.read()

    def read(self) -> None:
        """Handle what is new. An answer that is lost on its way is asked for again."""
        try:
            start, events = ray.get(self._relay.take.remote(self._receipt), timeout=ANSWER_SECONDS)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return  # the cluster is busy, or going down; `fit` tells why
        for number, (name, args, kwargs) in events:
            self._receipt = Receipt(start, number)
            self._handlers[name](*args, **kwargs)
