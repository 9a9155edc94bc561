"""What every worker runs, under Ray Train, under torchrun, or alone: `run_worker(spec)`.

    torchrun --nproc-per-node 2 -m trainer.train gowalla --data G --out R

Ray Train calls the very same function (cluster/workers/ray_workers.py).
"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from trainer.base.ending import guarded, is_first_rank
from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake, MistakeOfAll, require
from trainer.base.screen import say
from trainer.command_line import TrainArguments, parse_preset, settings_given
from trainer.data.schema import Dataset
from trainer.distributed.agreement import check_agreement, first_decides, together
from trainer.distributed.hooks import Hooks
from trainer.distributed.ranks import Ranks, process_group
from trainer.files.storage import storage_path
from trainer.fitting import fitted
from trainer.follow import train_and_follow
from trainer.launch.here import Here
from trainer.launch.launcher import GO_ON, Resumable, Worker
from trainer.launch.shared_memory import check_shared_memory
from trainer.model.build import local_batch_size
from trainer.model.inputs import build_inputs
from trainer.model.memory import check_memory
from trainer.model.vector_start import vector_attribute
from trainer.observe.progress import Progress, SilentProgress, TerminalProgress, quiet_libraries
from trainer.observe.trackers.mirror import check_trackers
from trainer.run.asked.beside import joined_with, told_of_beside
from trainer.run.folder import PACKAGES, RunFolder, RunSpec
from trainer.run.outside import Outside
from trainer.run.state import read_state
from trainer.watch.changed_items import check_folder


def run_worker(
    spec: RunSpec,
    progress: Progress | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Train one rank's share of a run to its end; returns the summary (also RUN/summary.json).

    Collective from start to end: every rank calls it with the same `spec`.

    Args:
        progress: where rank 0 reports to; None draws on standard error.
        hooks: what the launcher wants to be told, and whether it wants the run to stop; None:
            nothing.

    Raises:
        Mistake: for the user's mistakes, the same message on every rank.
        NonFiniteError: when the loss, a gradient or a table is NaN or infinite.
    """
    quiet_libraries()
    with process_group() as ranks, ExitStack() as stack:
        hooks = hooks or Hooks()
        hooks.on_phase("starting", 0, None)
        torch.set_num_threads(cpu_threads(spec, ranks))
        # Each process that torchrun starts has made an id of its own.
        run_id = first_decides(lambda: spec.run_id)  # collective
        dataset = together(lambda: Dataset.load(spec.data))  # collective
        folder = RunFolder(spec.out)
        resuming = first_decides(lambda: folder.check_start(spec, dataset))  # collective
        spec, notes = together(lambda: _fitted(spec, dataset, ranks))  # collective
        check_agreement(  # collective
            {
                "dataset digest": dataset.digest,
                "config": spec.config.digest,
                "versions": {name: metadata.version(name) for name in PACKAGES},
            }
        )
        waits = spec.resume == "auto"
        first_decides(lambda: stack.enter_context(folder.taken(run_id, waits)))  # collective
        if waits:  # the start that was waited for may have got on
            resuming = first_decides(lambda: folder.check_start(spec, dataset))  # collective
        together(lambda: folder.seen_by_all(run_id))  # collective
        reporter = progress if progress is not None else TerminalProgress()
        shown = reporter if ranks.is_first else SilentProgress()
        stack.callback(shown.close)
        for note in notes:
            shown.message(note)
        return train_and_follow(spec, dataset, folder, ranks, shown, hooks, resuming)  # collective


def train_on_rank(spec: RunSpec, worker: Worker) -> dict[str, Any]:
    """`run_worker` as a launcher's work. Collective."""
    return run_worker(spec, worker.progress, worker.hooks)


def resumable(spec: RunSpec, go_on: str = GO_ON) -> Resumable:
    """What a launcher has to know of `train_on_rank`."""
    config, outside = spec.config, Outside(spec.out, spec.run_id)
    return Resumable(
        run=spec.out,
        global_batch_size=config.training.global_batch_size,
        saved_step=lambda: saved_step(spec.out),
        waiting=outside.waiting,
        failed=outside.failed,
        serves_metrics=config.metrics.enabled,
        go_on=go_on,
    )


def saved_step(run: str) -> int:
    """Step of the newest checkpoint of RUN; 0 where there is none, or none that is seen here."""
    try:
        return read_state(run).checkpoint_step or 0
    except (ValueError, OSError):
        return 0


def _fitted(spec: RunSpec, dataset: Dataset, ranks: Ranks) -> tuple[RunSpec, list[str]]:
    """`fitted`, once the workers are known: Mistake also where they cannot train it. No collective.

    Nothing has been built or written by then.
    """
    spec, notes = fitted(spec, dataset)
    config, origin = spec.config, spec.start_from
    if origin is not None and joined_with(storage_path(origin)) is not None:
        notes.append(f"--start-from {origin} takes its own model, not the second one beside it")
    build_inputs(config.model, dataset)
    if config.model.item_vectors is not None:
        vector_attribute(dataset, config.model.item_vectors)
    local_batch_size(config, ranks)
    require(
        config.loss.backend != "triton" or ranks.device.type == "cuda",
        "loss.backend='triton' is the CUDA kernel, and there is no GPU here: use auto",
    )
    check_memory(config, dataset, ranks)
    if ranks.device.type == "cuda":
        check_shared_memory(ranks.local_world_size)
    if spec.export_to is not None:
        check_folder(spec.export_to)
    if ranks.is_first:
        check_trackers(config.metrics.track, spec.out)
    return spec, notes


def cpu_threads(spec: RunSpec, ranks: Ranks) -> int:
    """Threads for this worker's CPU kernels: its share of the CPUs it may use."""
    return spec.config.training.threads or max(1, usable_cpus() // ranks.local_world_size)


def main(arguments: list[str]) -> int:
    """The command line under torchrun; exit status: see trainer/base/ending.py."""
    preset, parsed = parse(arguments)
    spec = parsed.run_spec(preset, settings_given(arguments))
    Here().run(train_on_rank, spec, resumable(spec))
    for line in told_of_beside(storage_path(spec.out)) if is_first_rank() else ():
        say(line)
    return 0


def parse(arguments: list[str]) -> tuple[str, TrainArguments]:
    """Preset and flags. What is wrong with them is told by rank 0 alone."""
    program = "torchrun -m trainer.train"
    if is_first_rank():
        return parse_preset(arguments, program, TrainArguments)
    try:
        with Path(os.devnull).open("w") as nobody, redirect_stdout(nobody), redirect_stderr(nobody):
            return parse_preset(arguments, program, TrainArguments)
    except Mistake as mistake:
        raise MistakeOfAll(str(mistake)) from mistake


if __name__ == "__main__":
    verbose, given = "--verbose" in sys.argv[1:], [a for a in sys.argv[1:] if a != "--verbose"]
    sys.exit(guarded(lambda: main(given), shlex.join(["trainer.train", *given]), verbose))
