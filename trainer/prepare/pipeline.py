"""`tandem prepare SOURCE OUT`: interactions of any source become a dataset on disk.

    source files -> raw table -> id rows -> staged partitions -> events in order, by window
      formats/       staging.py, attributes.py    partitions/
    and last the tables of users and items: entity_tables.py

DuckDB reads, deals ids and joins, and spills what exceeds --memory-limit; a partition of users is
sorted in memory, by numpy. OUT is whole or not there (whole_folder.py).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from trainer.base.byte_sizes import bytes_of
from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.files.filesystems import is_uri, local_path
from trainer.files.whole_folder import clear_leftovers, whole_folder
from trainer.observe.progress import Progress, TerminalProgress
from trainer.prepare.extend import (
    check_alone,
    replaced_files,
)
from trainer.prepare.partitions.partition import MEMORY, prepare_partition
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.prepare.preview.look import look
from trainer.prepare.steps import Build, Engine
from trainer.prepare.summary import print_summary
from trainer.prepare.trim import check_in_place, forgotten_rows, trim
from trainer.sources import sql
from trainer.sources.statement_watch import interruptible

__all__ = ["Engine", "PrepareArguments", "prepare", "run_here"]


def run_here(
    plan: PartitionPlan, resources: sql.Resources, progress: Progress, rows: int
) -> list[PartitionCounts]:
    """The engine of one machine: as many partitions at a time as there are cores, in memory."""
    cores = resources.threads or usable_cpus()
    at_once = min(cores, bytes_of(resources.memory_limit, sql.MEMORY_FLAG) // MEMORY)
    counts: list[PartitionCounts] = []
    started = time.monotonic()
    pool = ThreadPoolExecutor(max(1, at_once), "partition")
    try:
        for counted in pool.map(
            partial(prepare_partition, plan, resources=resources), range(plan.parts)
        ):
            counts.append(counted)
            done = rows * len(counts) // plan.parts
            rate = done / max(time.monotonic() - started, 1e-6)
            progress.update("writing events", done, rows, rows_per_second=rate)
    finally:
        pool.shutdown(cancel_futures=True)
    return counts


def prepare(
    arguments: PrepareArguments, progress: Progress | None = None, engine: Engine = run_here
) -> None:
    """Make the dataset and print what is in it. Raises Mistake on the user's mistakes."""
    started = time.monotonic()
    if arguments.look:
        return look(arguments)
    if arguments.only_trims:
        check_in_place(arguments.source)
        dataset = Dataset.load(arguments.source)
        dataset = _trimmed(dataset, arguments, progress or TerminalProgress())
        return print_summary(dataset, time.monotonic() - started)
    extended = arguments.out if arguments.append else arguments.extend
    parent = None if extended is None else _parent(extended)
    replaces = None
    if parent is not None and _is_same(arguments.out, parent.path):
        if is_uri(arguments.out):
            raise Mistake(f"{arguments.out} cannot be replaced in place: name another OUT")
        check_alone(parent)
        replaces = partial(replaced_files, parent)
    scratch = None if arguments.scratch is None else Path(arguments.scratch)
    if arguments.trims:
        check_in_place(arguments.out)
    shown = progress or TerminalProgress()
    try:
        with (
            interruptible(),
            sql.faults(f"preparing {arguments.source}"),
            whole_folder(arguments.out, replaces, scratch) as folder,
            _scratch_folder(scratch, folder) as spill,
        ):
            dataset = Build(arguments, parent, folder, spill, shown).run(engine)
            (folder / "dataset.json").write_text(dataset.to_json())
    finally:
        shown.close()
    dataset = replace(dataset, path=arguments.out)
    if arguments.trims:
        dataset = _trimmed(dataset, arguments, shown)
    return print_summary(dataset, time.monotonic() - started)


def _trimmed(dataset: Dataset, arguments: PrepareArguments, progress: Progress) -> Dataset:
    """The dataset without forgotten users and old windows."""
    forgotten = None
    if arguments.forget_users is not None:
        forgotten, unknown = forgotten_rows(dataset, arguments.forget_users)
        progress.message(f"forgetting {len(forgotten):,} users, {unknown:,} ids are no user's")
    return trim(dataset.path, forgotten, arguments.keep_windows)


def _parent(path: str) -> Dataset:
    """The dataset that is extended."""
    if not is_uri(path) and not local_path(path).exists():
        clear_leftovers(local_path(path).resolve())  # it stands aside, of a run that was killed
    return Dataset.load(path)


def _is_same(out: str, path: str) -> bool:
    if is_uri(out) or is_uri(path):
        return out.rstrip("/") == path.rstrip("/")
    return local_path(out).resolve() == local_path(path).resolve()


@contextmanager
def _scratch_folder(scratch: Path | None, folder: Path) -> Iterator[Path]:
    """A temporary folder for DuckDB's own files."""
    around = folder.parent.parent
    sql.check_folder(around, "\\", "name another OUT")
    sql.check_folder(scratch or around, "?\\", "name another folder with --scratch")
    home = scratch or folder
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tandem-", dir=home) as temporary:
        yield Path(temporary)
