"""What the user sees while something runs: one live line on a terminal, plain lines elsewhere.

    training   ━━━━━━━━━━╸         1,200/4,000  loss 4.318  21,407 rows/s  eta 0:02:11

Everything that takes long speaks to a `Progress`. `TerminalProgress` draws; under Ray rank 0's
reports travel to a `TerminalProgress` in the driver. Progress goes to standard error, results to
standard output. Nothing here touches a device: callers hand over plain numbers.
"""

import logging
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from trainer.base.screen import plain_console, shown, wrapped

PLAIN_LINE_SECONDS = 10.0
WAIT = "what is waited for"
"""The name of that line; no work has it."""
RECENT_UPDATES = 100  # that the time left is reckoned from
LOUD_LOGGERS = (
    "torchrec",
    "fbgemm_gpu",
    "ray",
    "ray.train",
    "ray.data",
    "torch.fx",
    "torch.distributed",
    "torch.distributed.checkpoint",
    "torch.distributed.elastic",
)
LOUD_MODULES = r"(torch|torchrec|fbgemm_gpu|ray|tensordict|torchmetrics|pyre_extensions)(\.|$)"
# Warnings that libraries pin on our lines.
LOUD_MESSAGES = (
    r"Please use DTensor",
    r".*is_fx_tracing",
    r"Sparse CSR tensor support",
    r"IProgress not found",
)
QUIET_ENVIRONMENT = {
    "TORCH_LOGS": "-all",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "GLOG_minloglevel": "2",
    "NCCL_DEBUG": "ERROR",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


class Progress(Protocol):
    """Where long work reports to."""

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        """`done` of `total` (None: unknown) units of `name` are through; `values` stand beside."""

    def message(self, text: str) -> None:
        """A line the user should keep: a checkpoint was written, a warning."""

    def waiting(self, words: str | None, seconds: float = 0.0) -> None:
        """What is waited for since `seconds`, 0 where it begins: nothing of it can be counted.

        To be called again and again. None: it is over, as it is with the next update.
        """

    def close(self) -> None:
        """The work is over."""


class SilentProgress:
    """Says nothing: every rank but the first."""

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def waiting(self, words: str | None, seconds: float = 0.0) -> None:
        pass

    def close(self) -> None:
        pass


class TerminalProgress:
    """Draws progress on `stream`: live if it is a terminal, else a line every `every_seconds`.

    A context manager; `close` ends the live line. Values are formatted by name: `loss` with four
    significant digits, `..._per_second` as "1,234 .../s".
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        every_seconds: float = PLAIN_LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = plain_console(stream or sys.stderr)
        self._every_seconds = every_seconds
        self._clock = clock
        self._live: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._recent: dict[str, deque[tuple[float, int]]] = {}
        self._printed: dict[str, float] = {}
        self._lock = threading.RLock()
        """Waits are told by threads of their own."""

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        recent = self._recent.setdefault(name, deque(maxlen=RECENT_UPDATES))
        if recent and done < recent[-1][1]:  # gone back, to a checkpoint
            recent.clear()
        recent.append((self._clock(), done))
        self.waiting(None)
        if self._console.is_terminal:
            beside = "  ".join(format_value(key, value) for key, value in values.items())
            with self._lock:
                self._draw(
                    name, name, counted(done, total), completed=done, total=total, values=beside
                )
        elif self._is_due(name, done == total):
            self._print(self._plain_line(name, done, total, values))

    def message(self, text: str) -> None:
        self._print(text)

    def waiting(self, words: str | None, seconds: float = 0.0) -> None:
        with self._lock:
            if words is None:
                self._end_wait()
            elif self._console.is_terminal:
                self._draw(WAIT, words, f"{seconds:,.0f} s")
            elif self._is_due(WAIT, seconds == 0):
                self._print(f"{words}  {seconds:,.0f} s" if seconds else words)

    def _end_wait(self) -> None:
        if WAIT in self._tasks and self._live is not None:
            self._live.remove_task(self._tasks.pop(WAIT))
            if not self._tasks:
                self._live.live.transient = True  # no blank line in its place
                self.close()

    def _print(self, text: str) -> None:
        kept = shown(text, keep="\n")
        if self._console.is_terminal:
            kept = "\n".join(wrapped(line, self._console.width) for line in kept.split("\n"))
        self._console.print(kept, soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._tasks.clear()

    def __enter__(self) -> "TerminalProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _draw(self, name: str, description: str, count: str, **fields: Any) -> None:
        """The live line `name`, which has a bar of `total` where that is known."""
        if self._live is None:
            self._live = RichProgress(
                TextColumn("{task.description:<12}", markup=False),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[count]}", markup=False),
                TextColumn("{task.fields[values]}", markup=False),
                TimeRemainingColumn(compact=True),
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()
        if name not in self._tasks:
            self._tasks[name] = self._live.add_task("", total=None, values="", count="")
        self._live.update(self._tasks[name], description=shown(description), count=count, **fields)

    def _is_due(self, name: str, is_last: bool) -> bool:
        now = self._clock()
        if not is_last and now - self._printed.get(name, float("-inf")) < self._every_seconds:
            return False
        self._printed[name] = now
        return True

    def _plain_line(self, name: str, done: int, total: int | None, values: dict[str, float]) -> str:
        parts = [name, counted(done, total)]
        parts += [format_value(key, value) for key, value in values.items()]
        then, first = self._recent[name][0]
        if total is not None and first < done < total:
            remaining = (total - done) * (self._clock() - then) / (done - first)
            parts.append(f"eta {format_seconds(remaining)}")
        return "  ".join(parts)


def counted(done: int, total: int | None) -> str:
    """`1,200/4,000`, or `1,200` of nobody knows how many."""
    return f"{done:,}" if total is None else f"{done:,}/{total:,}"


def format_value(name: str, value: float) -> str:
    """`loss 4.318`, `rows 146,464`, `21,407 rows/s`."""
    if name.endswith("_per_second"):
        return f"{value:,.0f} {name.removesuffix('_per_second')}/s"
    return f"{name} {value:,.0f}" if abs(value) >= 10_000 else f"{name} {value:.4g}"


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds: `0:02:11`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def in_words(seconds: float) -> str:
    """How long something took: `4 s`, `1 min 50 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def quiet_libraries(verbose: bool = False) -> None:
    """Hide the chatter of torch, torchrec, fbgemm and Ray, unless `verbose`.

    Call it first in every process: environment variables are read when a library is imported,
    and processes started later inherit them. Calling it again after the imports is harmless.
    """
    if verbose:
        return
    for variable, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    for name in LOUD_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=LOUD_MODULES)
    for message in LOUD_MESSAGES:
        warnings.filterwarnings("ignore", message=message)
