"""Partitions of a dataset made as tasks on a Ray cluster: `tandem prepare --engine ray`."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path

import ray

from trainer.base.byte_sizes import bytes_of
from trainer.base.mistake import Mistake
from trainer.observe.progress import Progress
from trainer.prepare.partitions.partition import prepare_partition
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan
from trainer.sources.sql import MEMORY_FLAG, Resources

RETRIES = 3
DEFAULT_TASK_THREADS = 2


def run_tasks(
    plan: PartitionPlan, resources: Resources, progress: Progress, rows: int
) -> list[PartitionCounts]:
    """One Ray task a partition, on the connected cluster; counts in the order of partitions.

    A task holds `threads` CPUs and `memory_limit` of its node's memory, so that Ray starts no
    more of them than a node can bear.
    """
    threads = resources.threads or min(DEFAULT_TASK_THREADS, _largest("CPU"))
    memory = bytes_of(resources.memory_limit, MEMORY_FLAG)
    for name, needed, flag in (
        ("CPU", threads, f"--threads {threads}"),
        ("memory", memory, f"{MEMORY_FLAG} {resources.memory_limit}"),
    ):
        if needed > _largest(name):
            raise Mistake(
                f"{flag} is more than any node of the Ray cluster has ({name} {_largest(name):,}): "
                "lower it, or add larger nodes"
            )
    task = ray.remote(prepare_on_node).options(num_cpus=threads, memory=memory, max_retries=RETRIES)
    settings = replace(resources, threads=threads)
    part_of = {task.remote(plan, part, settings): part for part in range(plan.parts)}
    counts: dict[int, PartitionCounts] = {}
    started = time.monotonic()
    waiting = list(part_of)
    while waiting:
        finished, waiting = ray.wait(waiting)
        for reference in finished:
            counts[part_of[reference]] = _result(reference)
        done = rows * len(counts) // plan.parts
        rate = done / max(time.monotonic() - started, 1e-6)
        progress.update("writing events", done, rows, rows_per_second=rate)
    return [counts[part] for part in range(plan.parts)]


def _result(reference: ray.ObjectRef) -> PartitionCounts:
    """A task's counts; its errors in the words they were raised with."""
    try:
        counts = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Mistake | OSError | RuntimeError):
            raise error.cause from None
        raise
    assert isinstance(counts, PartitionCounts)
    return counts


def prepare_on_node(plan: PartitionPlan, part: int, resources: Resources) -> PartitionCounts:
    """What a Ray task does: one partition, if its node sees the staged rows."""
    if not Path(plan.staging).exists():
        raise Mistake(
            f"{Path(plan.out).parent.parent} is not there on node {socket.gethostname()}: with "
            "--engine ray, OUT must lie on a file system that all nodes share"
        )
    return prepare_partition(plan, part, resources)


def _largest(name: str) -> int:
    """The most of a resource that one living node has."""
    return max(int(node["Resources"].get(name, 0)) for node in ray.nodes() if node["Alive"])
