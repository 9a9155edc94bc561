"""Real gloo processes: `run_ranks(4, function, argument)` gives what each rank returned.

Modules that use it are of one group (`xdist_group("ranks")`): the fork server, whose imports take
four seconds, then starts in one test process alone, and their fixtures are made once.
"""

import gc
import multiprocessing
import multiprocessing.connection
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

# A fork server imports what is slow once; its children are forked from that, and from no thread of
# ours. pandas: pyarrow imports it at its first to_numpy(), half a second in every child.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pandas",
        "pytest",
        "pyarrow.compute",
        "trainer.train",
        "trainer.model.trained",
        "trainer.retrieval.evaluate",
    ]
)


def run_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 100.0
) -> list[Any]:
    """Calls `function(*arguments)` in `world_size` processes of one gloo group; results by rank.

    The function and its arguments and results must be picklable. Raises AssertionError with the
    rank's traceback if one fails, and if the ranks do not end in time (a hang).
    """
    port = free_port()
    processes, pipes = [], []
    for rank in range(world_size):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(
            target=_rank_main, args=(rank, world_size, port, sender, function, arguments)
        )
        process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    try:
        return _collect(pipes, time.monotonic() + timeout_seconds)
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_rank(function: Callable[..., None], *arguments: Any) -> Any:
    """One process that runs `function(*arguments)`, forked from what is imported already."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def _collect(pipes: list[Any], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = multiprocessing.connection.wait(waiting, timeout=deadline - time.monotonic())
        missing = [rank for rank in range(len(pipes)) if rank not in results]
        assert ready, f"ranks {missing} of {len(pipes)} did not end in time: a hang"
        for pipe in ready:
            rank = pipes.index(pipe)
            failed, content = pickle.loads(pipe.recv_bytes())
            assert not failed, f"rank {rank} failed:\n{content}"
            results[rank] = content
    return [results[rank] for rank in range(len(pipes))]


def _rank_main(
    rank: int, world_size: int, port: int, pipe: Any, function: Callable[..., Any], arguments: Any
) -> None:
    import torch
    import torch.distributed as dist

    gc.freeze()  # what was imported before the fork: not looked at, and its pages stay shared
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
        result = pickle.dumps((False, function(*arguments)))
    except Exception:  # noqa: BLE001 - whatever it was, the parent reports it
        result = pickle.dumps((True, traceback.format_exc()))
    pipe.send_bytes(result)
    gc.collect()  # a group destroyed while tensors of its hooks live sometimes aborts the process
    if dist.is_initialized():
        dist.destroy_process_group()
