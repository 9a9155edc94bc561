"""Hung ranks are found: every rank beats, and the relay condemns a group that goes no further.

A rank that stops (SIGSTOP, a dead lock, a lost disk) leaves the others in a collective, each
waiting for a time-out of its own. Here a thread of each rank tells the relay every few seconds what
the rank is at; the relay's verdict (pulses.py) is the answer to every beat from then on: the
process ends, and the driver tells the verdict as the cause.

A rank on a node that the network was cut from hears no verdict. It ends by itself when no beat was
answered for as long: else it would hold RUN, which it may still reach, from those that go on.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import ray

from cluster.workers.preemption import TOLD
from cluster.workers.pulses import BEAT_SECONDS, SILENT_SECONDS, Beat
from trainer.distributed.hooks import RunPhase
from trainer.distributed.pauses import SignPauses

CONDEMNED_STATUS = 70


class Heartbeat:
    """A worker's side: a thread that beats until the process ends, or is condemned or cut off."""

    def __init__(self, relay: Any, group: int, rank: int, step_timeout_seconds: float) -> None:
        self._relay = relay
        self._group = group
        self._rank = rank
        self._step_timeout_seconds = step_timeout_seconds
        self._step = 0
        self._signs = 0
        self._stop_asked = False
        self._where = f"pid {os.getpid()} on {socket.gethostname()}"
        self._node = ray.get_runtime_context().get_node_id()
        self._pauses = SignPauses()
        self._thread = threading.Thread(target=self._run, name="tandem-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._pauses.end()
        self._thread.join(timeout=2 * BEAT_SECONDS)
        self._relay.leave.remote(self._group, self._rank)

    def on_step(self, step: int) -> None:
        """The rank has finished `step`: cheap, it only stores the number."""
        self._step = step
        self._signs += 1

    def on_phase(self, phase: RunPhase, done: int, total: int | None) -> None:
        """The rank has got on with what it is at: as cheap. That it has started is told at once."""
        self._pauses.note(phase, done, total)
        self._signs += 1

    def stop_requested(self) -> bool:
        """Whether the driver, or SIGTERM, wants the group to write a checkpoint and return."""
        return self._stop_asked or TOLD.is_set()

    def _beat(self) -> Beat:
        phase, done, total = self._pauses.phase
        return Beat(
            self._rank,
            self._step,
            phase,
            done,
            total,
            self._signs,
            self._where,
            self._node,
            os.getpid(),
        )

    def _run(self) -> None:
        answered_at = time.monotonic()
        wait = 0.0  # a rank that hangs at once has been heard of
        while self._pauses.take(wait):
            wait = BEAT_SECONDS
            beat = self._relay.beat.remote(self._group, self._beat())
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
        if not self._pauses.are_over:
            os._exit(CONDEMNED_STATUS)
