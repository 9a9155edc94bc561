"""SIGTERM, of a scheduler that wants the machine back, and Ctrl-C: a checkpoint, then the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Terminated(Exception):
    """The run has ended early because it was told to. `status`: the process' exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Told(threading.Event):
    """Set once the process is told to end; `by`: by which of NAMES, the first that came."""

    def __init__(self) -> None:
        super().__init__()
        self._number = signal.SIGTERM

    def hear(self, number: int) -> None:
        """Note a signal. A second Ctrl-C raises KeyboardInterrupt: there is haste."""
        if self.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.is_set():
            self._number = signal.Signals(number)
            self.set()

    @property
    def by(self) -> str:
        return NAMES[self._number]

    @property
    def status(self) -> int:
        """As a shell reports a program that the signal ended."""
        return 128 + self._number

    def ended(self, message: str) -> Terminated:
        """The exception for a run that has done what it was told."""
        return Terminated(f"stopped on {self.by}{message}", self.status)


@contextmanager
def terminations() -> Iterator[Told]:
    """What SIGTERM and Ctrl-C set, in place of ending the process.

    Signals reach the main thread alone: in another one nobody tells anything. The handler does no
    more than that: it interrupts whatever the main thread is in. Also where the process was started
    to ignore Ctrl-C, as a shell does in its background: whoever sends it there means it.
    """
    told = Told()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def handle(number: int, frame: FrameType | None) -> None:
        told.hear(number)

    before = {number: signal.signal(number, handle) for number in NAMES}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
