"""`tandem prepare SOURCE OUT [--engine ray]`: partitions made here, or as tasks on a Ray cluster.

The driver reads the source and deals ids and partitions; each Ray task runs the same DuckDB
statements on one partition of users that `--engine local` runs one after the other. So the output
is the same to the byte. OUT must lie on a file system that all nodes share.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ray

from cluster.session import ray_session
from cluster.usage import parse
from trainer.data.partition import PartitionCounts, PartitionPlan, prepare_partition
from trainer.data.prepare import PrepareArguments, prepare, run_here
from trainer.data.sql import Resources, bytes_of
from trainer.progress import Progress

RETRIES = 3
DEFAULT_TASK_THREADS = 2


@dataclass(frozen=True)
class PrepareAnywhere(PrepareArguments):
    """Make a dataset of interactions: dense ids, splits, histories, attributes."""

    engine: Literal["local", "ray"] = "local"
    """local: partitions of users are made one after the other on all cores. ray: as tasks on a
    Ray cluster, each with --threads cores (2) and --memory-limit; OUT on shared storage."""
    address: str | None = None
    """Ray cluster for --engine ray. Left out: RAY_ADDRESS, else a local cluster for this
    command."""


def main(arguments: Sequence[str], verbose: bool) -> int:
    """Prepare with the engine that was asked for."""
    parsed = parse(PrepareAnywhere, "tandem prepare", arguments)
    if parsed.engine == "local":
        if parsed.address is not None:
            raise ValueError(f"--address {parsed.address} needs --engine ray: add it")
        prepare(parsed, engine=run_here)
        return 0

    def run_on_ray(
        plan: PartitionPlan, resources: Resources, progress: Progress, rows: int
    ) -> list[PartitionCounts]:
        with ray_session(parsed.address, verbose=verbose):
            return run_tasks(plan, resources, progress, rows)

    prepare(parsed, engine=run_on_ray)
    return 0


def run_tasks(
    plan: PartitionPlan, resources: Resources, progress: Progress, rows: int
) -> list[PartitionCounts]:
    """One Ray task a partition, on the connected cluster; counts in the order of partitions.

    A task holds `threads` CPUs and `memory_limit` of its node's memory, so that Ray starts no
    more of them than a node can bear.
    """
    threads = resources.threads or min(DEFAULT_TASK_THREADS, _largest("CPU"))
    memory = bytes_of(resources.memory_limit)
    for name, needed, flag in (
        ("CPU", threads, f"--threads {threads}"),
        ("memory", memory, f"--memory-limit {resources.memory_limit}"),
    ):
        if needed > _largest(name):
            raise ValueError(
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
        progress.update("histories", done, rows, rows_per_second=rate)
    return [counts[part] for part in range(plan.parts)]


def _result(reference: ray.ObjectRef) -> PartitionCounts:
    """A task's counts; the user's mistakes as they were raised."""
    try:
        counts = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from None
        raise
    assert isinstance(counts, PartitionCounts)
    return counts


def prepare_on_node(plan: PartitionPlan, part: int, resources: Resources) -> PartitionCounts:
    """What a Ray task does: one partition, if its node sees the staged rows."""
    if not Path(plan.staging).exists():
        raise ValueError(
            f"{plan.out} is not there on node {socket.gethostname()}: with --engine ray, OUT must "
            "lie on a file system that all nodes share"
        )
    return prepare_partition(plan, part, resources)


def _largest(name: str) -> int:
    """The most of a resource that one living node has."""
    return max(int(node["Resources"].get(name, 0)) for node in ray.nodes() if node["Alive"])
