"""Progress of one long DuckDB statement, asked from a second thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from trainer.progress import Progress

EVERY_SECONDS = 0.5


@contextmanager
def watched(
    connection: duckdb.DuckDBPyConnection, progress: Progress, phase: str
) -> Iterator[None]:
    """Report the per cent done of each statement that runs in the body, as `phase %`."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(EVERY_SECONDS):
            done = int(connection.query_progress())
            if 0 < done < 100:
                progress.update(f"{phase} %", done, 100)

    connection.execute("SET enable_progress_bar = true")
    thread = threading.Thread(target=report, name="prepare-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
