"""Long DuckDB statements, watched from a second thread: how far they are, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb

from trainer.observe.progress import Progress
from trainer.observe.waiting import repeated
from trainer.sources import sql

EVERY_SECONDS = 0.5


@contextmanager
def watched(
    connection: duckdb.DuckDBPyConnection, progress: Progress, phase: str
) -> Iterator[None]:
    """Report the per cent done of each statement that runs in the body, as `phase %`."""

    def report() -> None:
        with suppress(duckdb.ConnectionException):  # closed in the meantime: Ctrl-C
            done = int(connection.query_progress())
            if 0 < done < 100:
                progress.update(f"{phase} %", done, 100)

    sql.set_progress(connection, "enable_progress_bar", True)
    with repeated(report, EVERY_SECONDS, "prepare-progress"):
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Have Ctrl-C end the statements of all connections at once, in the body.

    Python's own handler waits for the main thread, which waits for DuckDB's threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def interrupt() -> None:
        while numbers := os.read(reading, 64):
            if signal.SIGINT in numbers:
                for connection in list(sql.OPEN):
                    with suppress(duckdb.ConnectionException):  # closed
                        connection.interrupt()

    thread = threading.Thread(target=interrupt, name="prepare-interrupt", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)
