"""Where replicas say that they are there, and where their metrics are; the driver reads it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import ray

PULSE_SECONDS = 2.0
FORGET_SECONDS = 30.0
"""A replica that has said nothing for so long is gone."""
NAME, NAMESPACE = "tandem-serve", "tandem"


@dataclass(frozen=True)
class Pulse:
    """What a replica tells."""

    replica: str
    metrics: str
    """HOST:PORT."""
    node: str
    """Address of its node."""


class Board:
    """The last pulse of each replica, and a number that it keeps for as long as it is there."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, int, Pulse]] = {}

    def put(self, pulse: Pulse) -> None:
        found = self._said.get(pulse.replica)
        taken = {number for _, number, _ in self._said.values()}
        free = next(number for number in range(len(taken) + 1) if number not in taken)
        self._said[pulse.replica] = time.monotonic(), found[1] if found else free, pulse

    def read(self) -> dict[int, Pulse]:
        """By number, those that are there."""
        oldest = time.monotonic() - FORGET_SECONDS
        self._said = {name: each for name, each in self._said.items() if each[0] > oldest}
        return {number: pulse for _, number, pulse in self._said.values()}


def put_up_board() -> Any:
    """The actor, which ends with this process. Raises ValueError where another one has it up."""
    return ray.remote(Board).options(name=NAME, namespace=NAMESPACE, num_cpus=0).remote()


def tell(board: Any, pulse: Pulse) -> None:
    """Again and again, from a thread, as long as this process lives; a board that is gone hears
    nothing."""

    def go_on() -> None:
        while True:
            board.put.remote(pulse)
            time.sleep(PULSE_SECONDS)

    threading.Thread(target=go_on, name="tandem-pulses", daemon=True).start()
