"""SIGTERM: a scheduler wants the machine back. The run writes a checkpoint and ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED_STATUS = 128 + signal.SIGTERM


class Terminated(Exception):
    """The run has ended early on SIGTERM, with a checkpoint of its last step."""


@contextmanager
def terminations() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, in place of ending the process. Main thread only.

    The handler does no more than that: it interrupts whatever the main thread is in.
    """
    told = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        told.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
