"""No command is silent on a terminal: one that loads libraries says so, and for how long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SILENT_SECONDS = 0.2
"""So long a command may print nothing before it says that it is loading: with Python's own start
half a second."""
REPEATED_SECONDS = 0.5

_spoken, _drawn = threading.Event(), threading.Event()
_line = threading.Lock()


@contextmanager
def never_silent(words: str, seconds: float = SILENT_SECONDS) -> Iterator[None]:
    """Show `words` on a terminal, with the seconds since, from `seconds` on until the body prints
    something. Elsewhere standard error is for errors, a line each."""
    began, over = time.monotonic(), threading.Event()

    def show() -> None:
        wait = seconds
        while not over.wait(wait) and sys.stderr.isatty():
            with _line:
                if _spoken.is_set():
                    return
                _drawn.set()
                sys.stderr.write(f"\r{words}  {time.monotonic() - began:.0f} s")
                sys.stderr.flush()
            wait = REPEATED_SECONDS

    _spoken.clear()
    threading.Thread(target=show, name="tandem-loading", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        clear_loading_line()


def clear_loading_line() -> None:
    """Something is about to be printed: in place of what `never_silent` shows."""
    with _line:
        _spoken.set()
        if _drawn.is_set():
            _drawn.clear()
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
