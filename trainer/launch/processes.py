"""Work on several processes of this machine."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

import torch

from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.base.stopping import terminations
from trainer.launch.causes import Gravity, WorkFailedError
from trainer.launch.here import Here
from trainer.launch.launcher import Launcher, Resumable, Work, failure_noted
from trainer.launch.rank_process import End, run_rank
from trainer.launch.shared_memory import with_remedy

CONTEXT = multiprocessing.get_context("forkserver")
"""The server imports what is slow once; the ranks are forked from it."""
GLANCE_SECONDS = 0.2
HEARSAY_SECONDS = 2.0
"""So long a rank that tells of another one's end waits for that one to tell of it itself."""


def on_this_machine(workers: int | None) -> Launcher:
    """The launcher for `--workers`: None: one rank a GPU, else this process alone.

    Under torchrun this process is one of its ranks already, whatever `workers` says.

    Raises:
        Mistake: where the machine has fewer processors.
    """
    if "WORLD_SIZE" in os.environ:
        return Here()
    count = max(torch.cuda.device_count(), 1) if workers is None else workers
    if count < 1:
        raise Mistake(f"--workers {count}: at least 1")
    if count > most_workers():
        has = f"{most_workers()} {'GPUs' if torch.cuda.device_count() else 'CPUs'}"
        raise Mistake(
            f"--workers {count}: this machine has {has}, and further processes would only wait "
            f"for one another; at most {most_workers()}"
        )
    return Here() if count == 1 else Processes(count)


def most_workers() -> int:
    """A rank needs a GPU, or a CPU, of its own."""
    return torch.cuda.device_count() or usable_cpus()


@dataclass(frozen=True)
class Processes:
    """Ranks are processes of their own, which end with this one."""

    workers: int

    @property
    def is_here(self) -> bool:
        return True

    def run(self, work: Work, arguments: Any, resumable: Resumable | None = None) -> Any:
        """See `Launcher`."""
        threads = max(1, usable_cpus() // self.workers)
        with ExitStack() as stack:
            stack.enter_context(failure_noted(resumable))
            told = stack.enter_context(terminations())
            group = stack.enter_context(_Group(work, arguments, self.workers, threads))
            while not group.look():
                if told.is_set() and resumable is None:
                    raise told.ended("")
                if told.is_set():
                    group.ask_to_stop()
            if resumable is not None:
                resumable.check_end(told, group.result)
            return group.result

    def each(self, work: Work, many: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """As many as there are workers side by side, each in a process of its own."""
        threads = max(1, usable_cpus() // self.workers)
        waiting, running, slots = list(many), dict[str, _Group](), set(range(self.workers))
        with ExitStack() as stack:
            told = stack.enter_context(terminations())
            while waiting or running:
                while waiting and len(running) < self.workers:
                    name = waiting.pop(0)
                    slot = min(slots - {group.slot for group in running.values()})
                    group = _Group(work, many[name], 1, threads, name, slot)
                    running[name] = stack.enter_context(group)
                if told.is_set():
                    raise told.ended("")
                for name, group in list(running.items()):
                    if group.look(GLANCE_SECONDS / self.workers):
                        del running[name]
                        group.close()
                        yield name, group.result


class _Group:
    """Processes of one work. A context manager: leaving it ends them.

    Args:
        name: what a work of one rank is called; None: its ranks are.
        slot: of works side by side, which this one is; each has the GPU of its slot.
    """

    def __init__(
        self,
        work: Work,
        arguments: Any,
        count: int,
        threads: int,
        name: str | None = None,
        slot: int = 0,
    ) -> None:
        CONTEXT.set_forkserver_preload(["tandem", work.__module__])
        self._name, self.slot = name, slot
        device = slot % (torch.cuda.device_count() or 1)
        self._stop = CONTEXT.Event()
        self._ends: dict[int, End] = {}
        self._told_at: float | None = None
        """When the first rank failed."""
        self._processes: list[Any] = []
        self._pipes: list[multiprocessing.connection.Connection] = []
        port = _free_port()
        try:
            for rank in range(count):
                receiver, sender = CONTEXT.Pipe(duplex=False)
                environment = _environment(rank, count, device + rank, port)
                process = CONTEXT.Process(
                    target=run_rank,
                    args=(work, arguments, environment, threads, sender, self._stop),
                    daemon=True,
                )
                with _without_main():
                    process.start()
                sender.close()
                self._processes.append(process)
                self._pipes.append(receiver)
        except BaseException:
            self.close()
            raise

    @property
    def result(self) -> Any:
        """Rank 0's."""
        return self._ends[0].result

    def ask_to_stop(self) -> None:
        """Have the work return at a checkpoint, if it can."""
        self._stop.set()

    def look(self, seconds: float = GLANCE_SECONDS) -> bool:
        """Whether all ranks are through; waits for news of one, or so long.

        Raises:
            Mistake, WorkFailedError: the first cause, where a rank failed.
        """
        waited_for = [pipe for rank, pipe in enumerate(self._pipes) if rank not in self._ends]
        for pipe in multiprocessing.connection.wait(waited_for, seconds):
            rank = self._pipes.index(pipe)  # type: ignore[arg-type]
            self._ends[rank] = self._received(rank)
        failed = {rank: end for rank, end in self._ends.items() if end.text is not None}
        if failed:
            self._told_at = self._told_at or time.monotonic()
            rank = min(failed, key=lambda rank: (failed[rank].gravity, rank))
            is_sure = failed[rank].gravity is not Gravity.CONSEQUENCE
            waited = time.monotonic() - self._told_at
            if is_sure or waited > HEARSAY_SECONDS or len(self._ends) == len(self._pipes):
                self._raise(rank, failed[rank])
        return len(self._ends) == len(self._pipes)

    def _raise(self, rank: int, end: End) -> None:
        if end.gravity is Gravity.MISTAKE:
            raise Mistake(end.text)
        between = " " if end.gravity is Gravity.DEATH else ": "
        error = WorkFailedError(f"{self._name or f'rank {rank}'}{between}{end.text}")
        error.add_note(end.traceback)
        raise error

    def _received(self, rank: int) -> End:
        try:
            end: End = self._pipes[rank].recv()
        except EOFError:  # gone without a word
            return End(text=_death(self._processes[rank]), gravity=Gravity.DEATH)
        return end

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def __enter__(self) -> _Group:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Have a process that starts not run the user's script again: works are of modules of ours.

    A script without `if __name__ == "__main__"` would start processes in each process.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _death(process: Any) -> str:
    process.join()
    if process.exitcode >= 0:
        return f"ended without a result (exit status {process.exitcode})"
    name = signal.Signals(-process.exitcode).name
    reason = ": the memory does not suffice, most likely" if name == "SIGKILL" else ""
    return with_remedy(f"was ended by {name}{reason}")


def _environment(rank: int, count: int, device: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(device),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
