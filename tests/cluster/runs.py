"""`tandem train` as a process of its own, and what a run leaves behind."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.cluster.nodes import descendants, kill_quietly

SMALL = (
    "--model.dim=8",
    "--model.output-dim=8",
    "--model.hidden=8",
    "--training.global-batch-size=128",
    "--training.log-every-steps=1",
    "--evaluation.every-epochs=0",
)
WAIT_SECONDS = 300
"""Without any sign of progress: whatever else the machine does, a run says something by then."""


class Patience:
    """Lasts as long as there are signs of progress, and WAIT_SECONDS after the last one."""

    def __init__(self, signs: Callable[[], object]) -> None:
        self._signs, self._seen, self._since = signs, signs(), time.monotonic()

    def lasts(self) -> bool:
        if time.monotonic() - self._since < WAIT_SECONDS:
            return True
        seen, before = self._signs(), self._seen
        self._seen, self._since = seen, time.monotonic()
        return seen != before


class TrainRun:
    """A run of `tandem train demo`; its output is gathered as it comes.

    A context manager: leaving it leaves no process behind.

    Args:
        cwd: folder that it is started in; None: this process'.
        environment: variables on top of this process'.
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        *flags: str,
        workers: str = "2",
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.out = out
        self.lines: list[str] = []
        command = [sys.executable, "-m", "tandem", "train", "demo", f"--data={data}"]
        places = (f"--out={out}", f"--workers={workers}", "--discovery-port=0")
        self._command, self._cwd = [*command, *places, *SMALL, *flags], cwd
        self._environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | (environment or {})
        self._starts = 0
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self._cwd,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _has_ended(self) -> bool:
        """By itself. On a busy machine Ray, which gives itself 30 s, is started again."""
        if self.process.poll() is None:
            return False
        self._reader.join(timeout=10)
        if self.lines and "Ray did not start on this machine" in self.lines[-1]:
            self._start()
            return False
        return True

    def __enter__(self) -> "TrainRun":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pid in (*descendants(self.process.pid), self.process.pid):
            if self.process.poll() is None:
                kill_quietly(pid)
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def finish(self) -> int:
        """Wait for the end; the exit status."""
        waiting = Patience(self.signs)
        while not self._has_ended():
            assert waiting.lasts(), f"it does not end:\n{self.text}"
            time.sleep(0.1)
        return self.process.wait()

    def wait_for_text(self, text: str) -> None:
        self._wait(lambda: text in self.text, f"{text!r} was not said")

    def wait_for_checkpoint(self, after_step: int = 0) -> None:
        self._wait(lambda: max(self.checkpoints(), default=0) > after_step, "no checkpoint came")

    def wait_for_step(self, step: int) -> None:
        self._wait(lambda: max(self.losses(), default=0) >= step, f"no step {step}")

    def checkpoints(self) -> list[int]:
        found = self.out.glob("checkpoints/step-*/checkpoint.json")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)

    def worker_pids(self) -> list[int]:
        """Training workers below this run's driver (of a local cluster)."""
        return workers_below(self.process.pid)

    def losses(self) -> dict[int, float]:
        return read_losses(self.out)

    def signs(self) -> object:
        """Another value where it has got on: what is said is none while it says what it waits for,
        again and again."""
        told = {re.sub(r"[\d.,:]+", "", line) for line in self.lines}
        trained = sum(line.startswith("training  ") for line in self.lines)
        if not isinstance(self.out, Path):  # in an object store, which only the run itself asks
            return self._starts, len(told), trained
        return self._starts, len(told), trained, max(self.losses(), default=0), self.checkpoints()

    def _wait(self, is_true, failure: str) -> None:  # type: ignore[no-untyped-def]
        waiting = Patience(self.signs)
        while not is_true():
            assert not self._has_ended(), f"{failure}; the run ended:\n{self.text}"
            assert waiting.lasts(), f"{failure}:\n{self.text}"
            time.sleep(0.1)


def read_losses(out: Path) -> dict[int, float]:
    """By step, as far as whole lines are written."""
    file = out / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def workers_below(pid: int) -> list[int]:
    """Training workers among the processes below `pid`."""
    return [below for below in descendants(pid) if "RayTrainWorker" in title(below)]


def title(pid: int) -> str:
    """A process' name as `ps` shows it; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""
