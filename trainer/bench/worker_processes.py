"""Benchmark workers: processes that hold a model and run steps when asked.

Shapes: B rows of a rank's batch, C columns, D width.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from trainer.base.ending import foreign_line
from trainer.launch.causes import WorkFailedError

Kind = Literal["tandem", "plain"]


@dataclass(frozen=True)
class Workload:
    """What a step trains: MLP towers over user and item ids, in-batch SSM with logQ and masks."""

    users: int
    items: int
    dim: int
    global_batch_size: int
    precision: Literal["fp32", "bf16"]
    distinct: bool = True
    """Each distinct item of a step once; else every copy is a column."""
    temperature: float = 0.05
    zipf_exponent: float = 1.05


class Stepper(Protocol):
    """One rank's model."""

    def steps(self, count: int) -> float:
        """Run `count` steps; seconds."""

    def parts(self, count: int) -> dict[str, float]:
        """Seconds of each part of a step."""

    def columns(self) -> dict[str, float]:
        """What becomes of a step's candidates."""


class Group:
    """The processes of one side; all of them idle but while one of the methods runs."""

    def __init__(
        self,
        world_size: int,
        workload: Workload,
        threads: int,
        kind: Kind = "tandem",
        environment: dict[str, str] | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        before = dict(os.environ)
        os.environ.update(environment or {})  # a child's allocator reads it when it starts
        try:
            for rank in range(world_size):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(
                    target=_serve,
                    args=(theirs, rank, world_size, port, workload, threads, kind),
                    daemon=True,  # goes with us, whatever becomes of us
                )
                process.start()
                theirs.close()  # else its end would not be seen
                self._pipes.append(ours)
                self._processes.append(process)
        finally:
            os.environ.clear()
            os.environ.update(before)
        self._answers()

    def _ask(self, question: str, count: int = 0) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((question, count))
        return self._answers()

    def _answers(self) -> list[Any]:
        """One of each rank, as they come. Raises WorkFailedError where one fails or is gone."""
        answers: dict[Connection, Any] = {}
        while waiting := [pipe for pipe in self._pipes if pipe not in answers]:
            for pipe in wait(waiting):
                assert isinstance(pipe, Connection)
                rank = self._pipes.index(pipe)
                try:
                    answers[pipe] = pipe.recv()
                except EOFError:
                    self._processes[rank].join()
                    status = self._processes[rank].exitcode
                    raise WorkFailedError(f"rank {rank} is gone (exit status {status})") from None
                if isinstance(answers[pipe], _Failed):
                    raise WorkFailedError(f"rank {rank}: {answers[pipe].line}")
        return [answers[pipe] for pipe in self._pipes]

    def seconds_of(self, steps: int) -> float:
        """Seconds of the slowest rank for `steps` steps."""
        return float(max(self._ask("steps", steps)))

    def parts(self, steps: int = 10) -> dict[str, float]:
        """Seconds of each part of a step, on rank 0."""
        return dict(self._ask("parts", steps)[0])

    def columns(self) -> dict[str, float]:
        """What becomes of a step's candidates, over all ranks."""
        return dict(self._ask("columns")[0])

    def rank_bytes(self) -> int:
        """Memory of the largest rank: resident, or on a GPU the most that was allocated."""
        return int(max(self._ask("memory")))

    def close(self) -> None:
        self._ask("end")
        for process in self._processes:
            process.join()


@dataclass(frozen=True)
class _Failed:
    """What a rank sends when it cannot go on."""

    line: str


def _serve(pipe: Connection, *arguments: Any) -> None:
    try:
        _work(pipe, *arguments)
    except KeyboardInterrupt:
        return  # the process that started us says so
    except Exception as error:  # noqa: BLE001  told by the process that started us
        pipe.send(_Failed(foreign_line(error)))


def _work(
    pipe: Connection,
    rank: int,
    world_size: int,
    port: int,
    workload: Workload,
    threads: int,
    kind: Kind,
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from trainer.observe.progress import quiet_libraries

    quiet_libraries()
    import torch

    from trainer.bench.steppers import PlainStepper, TandemStepper
    from trainer.distributed.ranks import process_group

    torch.set_num_threads(threads)
    with process_group() as ranks:
        stepper: Stepper = (
            TandemStepper(workload, ranks)
            if kind == "tandem"
            else PlainStepper(workload, ranks.device)
        )
        pipe.send("ready")
        while (message := pipe.recv())[0] != "end":
            match message:
                case ("steps", count):
                    pipe.send(stepper.steps(count))
                case ("parts", count):
                    pipe.send(stepper.parts(count))
                case ("columns", _):
                    pipe.send(stepper.columns())
                case ("memory", _):
                    on_gpu = ranks.device.type == "cuda"
                    pipe.send(torch.cuda.max_memory_allocated() if on_gpu else resident_bytes())
        del stepper
    pipe.send("ended")


def resident_bytes() -> int:
    """Bytes of this process in memory now, those shared with other processes left out."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


class PartTimer:
    """Adds up seconds between marks; `finish` waits for the device."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._finish = finish
        self._last = time.perf_counter()

    def start(self) -> None:
        self._finish()
        self._last = time.perf_counter()

    def mark(self, part: str) -> None:
        """What ran since the last mark was `part`."""
        self._finish()
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now
