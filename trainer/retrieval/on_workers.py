"""Run a command's work on several processes of this machine, without Ray."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from trainer.base.ending import foreign_line
from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.distributed.ranks import Ranks, process_group
from trainer.observe.progress import quiet_libraries

A = TypeVar("A")
CONTEXT = multiprocessing.get_context("forkserver")
"""The server imports what is slow once; the ranks are forked from it."""


class RankFailedError(RuntimeError):
    """What a rank met that is not the user's mistake; a note holds the rank's traceback."""


def on_workers(work: Callable[[A, Ranks], Any], arguments: A, workers: int | None) -> Any:
    """Rank 0's result of `work(arguments, ranks)` on `workers` ranks.

    None: one a GPU, else this process alone. Under torchrun this process is one of its ranks
    already, whatever `workers` says. A rank that fails ends the others.

    Raises:
        Mistake: of any rank, or where `workers` is more than the machine has processors.
        RankFailedError: where a rank fails otherwise, or its process is gone.
    """
    if "WORLD_SIZE" in os.environ:
        count = 1
    else:
        count = max(torch.cuda.device_count(), 1) if workers is None else _checked(workers)
    if count > 1:
        return _on_processes(work, arguments, count)
    with process_group() as ranks:
        return work(arguments, ranks)


def is_first_process() -> bool:
    """Whether this process speaks to the terminal and writes: under torchrun, rank 0 alone."""
    return Ranks.from_environment().is_first


def most_workers() -> int:
    """A rank needs a GPU, or a CPU, of its own."""
    return torch.cuda.device_count() or usable_cpus()


def still_running() -> list[int]:
    """Process ids of ranks that have not ended."""
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def _checked(workers: int) -> int:
    if workers < 1:
        raise Mistake(f"--workers {workers}: at least 1")
    if workers > most_workers():
        has = f"{most_workers()} {'GPUs' if torch.cuda.device_count() else 'CPUs'}"
        raise Mistake(
            f"--workers {workers}: this machine has {has}, and further processes would only wait "
            f"for one another; at most {most_workers()}"
        )
    return workers


@dataclass(frozen=True)
class _Told:
    """What a rank sends at its end."""

    result: Any = None
    mistake: str | None = None
    fault: str | None = None
    traceback: str = ""


def _on_processes(work: Callable[[A, Ranks], Any], arguments: A, count: int) -> Any:
    CONTEXT.set_forkserver_preload(["tandem", work.__module__])
    port = _free_port()
    processes, pipes = [], []
    try:
        for rank in range(count):
            receiver, sender = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(
                target=_rank, args=(rank, work, arguments, count, port, sender), daemon=True
            )
            process.start()
            sender.close()
            processes.append(process)
            pipes.append(receiver)
        return _result(processes, pipes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _result(
    processes: Sequence[Any], pipes: Sequence[multiprocessing.connection.Connection]
) -> Any:
    """Rank 0's result, once every rank has told that it is through."""
    result, waiting = None, dict(zip(pipes, range(len(pipes)), strict=True))
    while waiting:
        ready = multiprocessing.connection.wait(list(waiting))
        told = {waiting.pop(pipe): _received(pipe) for pipe in pipes if pipe in ready}
        _raise_gravest(told, processes)
        if 0 in told:
            first = told[0]
            assert first is not None
            result = first.result
    return result


def _received(pipe: multiprocessing.connection.Connection) -> _Told | None:
    """None: the process is gone without a word."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def _raise_gravest(told: dict[int, _Told | None], processes: Sequence[Any]) -> None:
    """A process that is gone comes first: others fail because of it. Then the user's mistakes."""
    for rank, message in told.items():
        if message is None:
            raise RankFailedError(_death(rank, processes[rank]))
    for message in told.values():
        if message is not None and message.mistake is not None:
            raise Mistake(message.mistake)
    for rank, message in told.items():
        if message is not None and message.fault is not None:
            error = RankFailedError(f"rank {rank}: {message.fault}")
            error.add_note(message.traceback)
            raise error


def _death(rank: int, process: Any) -> str:
    process.join()
    if process.exitcode >= 0:
        return f"rank {rank} ended without a result (exit status {process.exitcode})"
    name = signal.Signals(-process.exitcode).name
    reason = ": the memory does not suffice, most likely" if name == "SIGKILL" else ""
    return f"rank {rank} was ended by {name}{reason}"


def _rank(rank: int, work: Any, arguments: Any, count: int, port: int, sender: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    quiet_libraries()
    torch.set_num_threads(max(1, usable_cpus() // count))
    try:
        with process_group() as ranks:
            result = work(arguments, ranks)
            sender.send(_Told(result=result if ranks.is_first else None))
    except KeyboardInterrupt:
        return  # the process that started us says so
    except Mistake as mistake:
        sender.send(_Told(mistake=str(mistake)))
    except Exception as error:  # noqa: BLE001 - told by the process that started us
        sender.send(_Told(fault=foreign_line(error), traceback=traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
