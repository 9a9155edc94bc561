"""Run a command's work on several processes of this machine, without Ray."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.multiprocessing as mp

from trainer.machine import usable_cpus
from trainer.mistake import Mistake
from trainer.progress import quiet_libraries
from trainer.ranks import Ranks, process_group

A = TypeVar("A")


def on_workers(work: Callable[[A, Ranks], Any], arguments: A, workers: int | None) -> Any:
    """Rank 0's result of `work(arguments, ranks)` on `workers` ranks.

    None: one a GPU, else this process alone. Under torchrun this process is one of its ranks
    already, whatever `workers` says. A Mistake of any rank is raised here.
    """
    if workers is not None and workers < 1:
        raise Mistake(f"workers is {workers}; it must be at least 1")
    count = workers or max(torch.cuda.device_count(), 1)
    if count == 1 or "WORLD_SIZE" in os.environ:
        with process_group() as ranks:
            return work(arguments, ranks)
    logging.getLogger("torch.multiprocessing").setLevel(logging.ERROR)  # it reports our errors too
    results = mp.get_context("spawn").SimpleQueue()
    try:
        mp.spawn(_rank, (work, arguments, count, _free_port(), results), nprocs=count)
    except mp.ProcessExitedException as error:
        failure = None if results.empty() else results.get()
        if isinstance(failure, Mistake):
            raise failure from error
        raise
    return results.get()


def _rank(rank: int, work: Any, arguments: Any, count: int, port: int, results: Any) -> None:
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
            if ranks.is_first:
                results.put(result)
    except Mistake as mistake:
        results.put(Mistake(str(mistake)))
        raise SystemExit(1) from mistake


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
