"""`tandem prepare SOURCE OUT [--engine ray]`: partitions made here, or as tasks on a Ray cluster.

The driver reads the source and deals ids and partitions; each Ray task runs the same DuckDB
statements on one partition of users that `--engine local` runs one after the other. So the output
is the same to the byte. OUT must lie on a file system that all nodes share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.base.mistake import Mistake
from trainer.base.usage import parse
from trainer.files.filesystems import is_uri
from trainer.observe.progress import Progress
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan
from trainer.prepare.pipeline import PrepareArguments, prepare, run_here
from trainer.sources.sql import Resources


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
            raise Mistake(f"--address {parsed.address} needs --engine ray: add it")
        prepare(parsed, engine=run_here)
        return 0
    if is_uri(parsed.out):
        raise Mistake(
            f"--engine ray writes OUT on a file system that all nodes share, not to {parsed.out}: "
            "name a folder there, or leave --engine out"
        )
    from cluster.commands.prepare_tasks import (
        run_tasks,  # Ray: half a second that the local engine is spared
    )
    from cluster.workers.session import ray_session

    def run_on_ray(
        plan: PartitionPlan, resources: Resources, progress: Progress, rows: int
    ) -> list[PartitionCounts]:
        with ray_session(parsed.address, verbose=verbose):
            return run_tasks(plan, resources, progress, rows)

    prepare(parsed, engine=run_on_ray)
    return 0
