"""Tells trackers what is written to metrics.jsonl, from threads that training never waits for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from trainer.base.mistake import Mistake
from trainer.files.storage import storage_path
from trainer.observe.trackers.choices import TrackerName
from trainer.observe.trackers.tracker import Tracked, Tracker

LIBRARIES: dict[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "wandb": ("wandb", "wandb"),
}
"""What is imported, and what pip calls it."""
MOST_WAITING = 10_000
"""Lines kept for a tracker that does not answer; then the oldest go."""
CLOSING_SECONDS = 30.0
NO_VALUES = ("step", "time")
Line = tuple[int, dict[str, float]]


def check_trackers(names: Sequence[TrackerName], out: str) -> None:
    """Before any work, on the machine of rank 0.

    Raises:
        Mistake: where a tracker's library is not installed, or it is not said where it writes to.
    """
    for name in names:
        module, package = LIBRARIES[name]
        if find_spec(module) is None:
            raise Mistake(
                f"--track {name}: the library {module} is not installed here; "
                f"run: pip install {package}"
            )
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise Mistake(
            "--track mlflow: MLFLOW_TRACKING_URI is not set; set it to your server, as in "
            "http://HOST:5000"
        )
    if "tensorboard" in names and not isinstance(storage_path(out), Path):
        raise Mistake(
            f"--track tensorboard appends to files, which {out} cannot; take mlflow or wandb, or "
            "an --out on a disk"
        )


class Mirrors:
    """All trackers of a run; rank 0 alone has any."""

    def __init__(
        self, names: Iterable[TrackerName], tracked: Tracked, tell: Callable[[str], None]
    ) -> None:
        self._mirrors = [Mirror(name, partial(open_tracker, name, tracked)) for name in names]
        self._tell = tell

    def log(self, kind: str, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl (kind ""), or of validation.jsonl ("validation/")."""
        values = {
            kind + name.replace("@", "_at_"): float(value)
            for name, value in record.items()
            if isinstance(value, int | float) and name not in NO_VALUES
        }
        for mirror in self._mirrors:
            mirror.log(record["step"], values)
        self._tell_failures()

    def close(self) -> None:
        """Wait for the last lines, CLOSING_SECONDS each at most."""
        for mirror in self._mirrors:
            mirror.end()
        for mirror in self._mirrors:
            mirror.join()
        self._tell_failures()

    def _tell_failures(self) -> None:
        for mirror in self._mirrors:
            failure = mirror.take_failure()
            if failure is not None:
                self._tell(f"--track {mirror.name}: {failure}; metrics.jsonl has every line")


class Mirror:
    """One tracker and its thread. What goes wrong is kept to be told once, by who calls."""

    def __init__(self, name: str, open_it: Callable[[], Tracker]) -> None:
        self.name = name
        self._open = open_it
        self._lines: SimpleQueue[Line | None] = SimpleQueue()
        self._failures: list[str] = []
        self._told = False
        self._thread = Thread(target=self._run, name=f"track-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        self._lines.put((step, values))

    def end(self) -> None:
        """No more lines come."""
        self._lines.put(None)

    def join(self) -> None:
        """Wait for the end, CLOSING_SECONDS at most."""
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            self._failures.append(f"its last lines were not taken within {CLOSING_SECONDS:.0f} s")

    def take_failure(self) -> str | None:
        """The first thing that went wrong, once."""
        if self._told or not self._failures:
            return None
        self._told = True
        return self._failures[0]

    def _run(self) -> None:
        """The thread: lines that a tracker did not take are tried again with the next."""
        tracker: Tracker | None = None
        waiting: deque[Line] = deque(maxlen=MOST_WAITING)
        for line in iter(self._lines.get, None):
            waiting.append(line)
            try:
                tracker = tracker or self._open()
                while waiting:
                    tracker.log(*waiting[0])
                    waiting.popleft()
            except Exception as error:  # noqa: BLE001  of any library, of any server
                self._failures.append(f"{type(error).__name__}: {_first_line(error)}")
        try:
            if tracker is not None:
                tracker.close()
        except Exception as error:  # noqa: BLE001  likewise
            self._failures.append(f"{type(error).__name__}: {_first_line(error)}")


def open_tracker(name: TrackerName, tracked: Tracked) -> Tracker:
    """Import the library, and open its run."""
    match name:
        case "tensorboard":
            from trainer.observe.trackers.tensorboard import TensorBoard

            return TensorBoard(tracked)
        case "mlflow":
            from trainer.observe.trackers.mlflow import MLflow

            return MLflow(tracked)
        case "wandb":
            from trainer.observe.trackers.wandb import WeightsAndBiases

            return WeightsAndBiases(tracked)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no word of what"])[0][:300]
