"""Run one function on several numbers of gloo ranks, in processes started once.

Processes come from a fork server that has imported the heavy libraries already.
"""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.distributed import CONTEXT
from trainer.distributed.ranks import Ranks, process_group


def run_on_ranks(
    function: Callable[..., Any], world_sizes: Sequence[int], arguments: tuple[Any, ...], out: Path
) -> dict[int, list[Any]]:
    """`function(ranks, *arguments)` on every rank of every world size: results by rank."""
    ports = [_free_port() for _ in world_sizes]
    processes = [
        CONTEXT.Process(target=_work, args=(rank, function, world_sizes, ports, arguments, out))
        for rank in range(max(world_sizes))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return {
        size: [torch.load(out / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)]
        for size in world_sizes
    }


def _work(
    rank: int,
    function: Callable[..., Any],
    world_sizes: Sequence[int],
    ports: Sequence[int],
    arguments: tuple[Any, ...],
    out: Path,
) -> None:
    torch.set_num_threads(1)
    for size, port in zip(world_sizes, ports, strict=True):
        if rank >= size:
            continue
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        with process_group(timeout_seconds=60) as ranks:
            torch.save(function(ranks, *arguments), out / f"{size}-{rank}.pt")


def one_rank() -> Ranks:
    """This process as a world of one."""
    return Ranks(0, 1, 0, 1, torch.device("cpu"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
