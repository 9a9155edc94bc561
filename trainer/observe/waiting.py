"""What has nothing to count, libraries that load or workers that start, is told as a wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from trainer.observe.progress import Progress, TerminalProgress

TELL_SECONDS = 1.0


@contextmanager
def waits(
    progress: Progress, words: str | Callable[[], str], every_seconds: float = TELL_SECONDS
) -> Iterator[None]:
    """Tells again and again that the body goes on, which says little or nothing itself.

    Args:
        words: what is waited for; a function's are asked for each time.
    """
    began = time.monotonic()

    def tell(seconds: float) -> None:
        progress.waiting(words if isinstance(words, str) else words(), seconds)

    tell(0.0)  # before the body may keep other threads from running
    try:
        with repeated(lambda: tell(time.monotonic() - began), every_seconds, "tandem-waiting"):
            yield
    finally:
        progress.waiting(None)


@contextmanager
def waits_on_terminal(words: str) -> Iterator[None]:
    """`waits` of a body that shows no other progress."""
    with TerminalProgress() as progress, waits(progress, words):
        yield


@contextmanager
def repeated(act: Callable[[], None], every_seconds: float, name: str) -> Iterator[None]:
    """A thread of this name does `act` again and again in the body, first after `every_seconds`."""
    over = Event()

    def repeat() -> None:
        while not over.wait(every_seconds):
            act()

    thread = Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
