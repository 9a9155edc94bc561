"""Hung ranks are found: every rank beats, and the relay condemns a group that no longer steps.

A rank that stops (SIGSTOP, a dead lock, a lost disk) leaves the others in a collective, each
waiting for a time-out of its own. Here a thread of each rank tells the relay its step every few
seconds; when no rank has got further for `step_timeout_seconds`, the relay names the rank that
fell silent or behind, and every beat from then on is answered with that verdict: the process
ends, and the driver tells the verdict as the cause.

A rank on a node that the network was cut from hears no verdict. It ends by itself when no beat was
answered for as long: else it would hold RUN, which it may still reach, from those that go on.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from cluster.preemption import TOLD

BEAT_SECONDS = 2.0
SILENT_SECONDS = 3 * BEAT_SECONDS
CONDEMNED_STATUS = 70


@dataclass
class Pulse:
    """What is known of one rank."""

    step: int
    where: str
    node: str
    """Ray's id of it."""
    heard_at: float


@dataclass(frozen=True)
class Answer:
    """What a beat is answered."""

    verdict: str | None = None
    """Why the group is condemned."""
    stop: bool = False
    """Write a checkpoint and return."""


class Pulses:
    """The relay's side: beats of one group's ranks, and the verdict on them.

    Args:
        step_timeout_seconds: the longest that all ranks together may take for one step, or for
            whatever else they report progress of.
    """

    def __init__(
        self, step_timeout_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._step_timeout_seconds = step_timeout_seconds
        self._clock = clock
        self._group = 0
        self._count = 0
        self._stop = False
        self._ranks: dict[int, Pulse] = {}
        self._advanced_at = 0.0
        self.verdict: str | None = None

    def begin(self, group: int, count: int) -> None:
        """Forget an earlier group's ranks; the new one has `count`."""
        self._group, self._count = group, count
        self._ranks = {}
        self._advanced_at = self._clock()
        self._stop = False
        self.verdict = None

    def ask_to_stop(self, group: int) -> None:
        """Answer every beat of `group` from now on that it shall stop at a checkpoint."""
        self._stop = self._stop or group == self._group

    def advance(self) -> None:
        """Something went forward that is not a step: evaluation, for one."""
        self._advanced_at = self._clock()

    @property
    def nodes(self) -> set[str]:
        """Nodes that ranks were heard from."""
        return {pulse.node for pulse in self._ranks.values()}

    def beat(self, group: int, rank: int, step: int, where: str, node: str) -> Answer:
        """Note a rank's step; the verdict, if the group is condemned."""
        if group != self._group:
            return Answer()
        now = self._clock()
        known = self._ranks.get(rank)
        if known is None or step > known.step:
            self._advanced_at = now
        self._ranks[rank] = Pulse(step, where, node, now)
        if self.verdict is None and now - self._advanced_at > self._step_timeout_seconds:
            self.verdict = self._judge(now)
        return Answer(self.verdict, self._stop)

    def _judge(self, now: float) -> str:
        silent = {r: p for r, p in self._ranks.items() if now - p.heard_at > SILENT_SECONDS}
        last_step = min(pulse.step for pulse in self._ranks.values())
        behind = {r: p for r, p in self._ranks.items() if p.step == last_step}
        limit = f"no step within --step-timeout {self._step_timeout_seconds:g} s"
        unheard = [rank for rank in range(self._count) if rank not in self._ranks]
        if unheard:
            names = ", ".join(f"rank {rank}" for rank in unheard)
            return f"{names} has not answered since the group began: {limit}"
        if silent:
            names = ", ".join(
                f"rank {rank} ({pulse.where}) has not answered for {now - pulse.heard_at:.0f} s"
                for rank, pulse in sorted(silent.items())
            )
            return f"{names}: {limit}, last heard of at step {last_step}"
        if len(behind) < len(self._ranks):
            names = ", ".join(f"rank {rank} ({p.where})" for rank, p in sorted(behind.items()))
            return f"{names} hangs after step {last_step}: {limit}"
        return f"all {len(self._ranks)} ranks hang after step {last_step}: {limit}"


class Heartbeat:
    """A worker's side: a thread that beats until the process ends, or is condemned or cut off."""

    def __init__(self, relay: Any, group: int, rank: int, step_timeout_seconds: float) -> None:
        self._relay = relay
        self._group = group
        self._rank = rank
        self._step_timeout_seconds = step_timeout_seconds
        self._step = 0
        self._stop_asked = False
        self._where = f"pid {os.getpid()} on {socket.gethostname()}"
        self._node = ray.get_runtime_context().get_node_id()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tandem-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * BEAT_SECONDS)

    def on_step(self, step: int) -> None:
        """The rank has finished `step`: cheap, it only stores the number."""
        self._step = step

    def stop_requested(self) -> bool:
        """Whether the driver, or SIGTERM, wants the group to write a checkpoint and return."""
        return self._stop_asked or TOLD.is_set()

    def _run(self) -> None:
        answered_at = time.monotonic()
        wait = 0.0  # a rank that hangs at once has been heard of
        while not self._stop.wait(wait):
            wait = BEAT_SECONDS
            beat = self._relay.beat.remote(
                self._group, self._rank, self._step, self._where, self._node
            )
            try:
                answer = ray.get(beat, timeout=SILENT_SECONDS)
            except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                # The driver's node is busy, or away, or gone.
                if time.monotonic() - answered_at > self._step_timeout_seconds:
                    self._end()
                continue
            answered_at = time.monotonic()
            self._stop_asked = self._stop_asked or answer.stop
            if answer.verdict is not None:
                self._end()

    def _end(self) -> None:
        """The main thread sits in a collective that no exception can reach."""
        if not self._stop.is_set():
            os._exit(CONDEMNED_STATUS)
