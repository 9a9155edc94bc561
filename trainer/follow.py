"""`train --windows --follow`: train on what is there, wait for a window that is appended, again.

What has grown is opened as a run that is resumed: from its own newest checkpoint, whose rows are
taken by id, so that tables grow with the data.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from trainer.base.mistake import Mistake
from trainer.data.events.event_stream import window_numbers
from trainer.data.schema import Dataset
from trainer.distributed.agreement import check_agreement, first_decides, together
from trainer.distributed.hooks import Hooks
from trainer.distributed.ranks import Ranks
from trainer.observe.progress import Progress
from trainer.run.folder import RunFolder, RunSpec
from trainer.worker_run import Run

POLL_SECONDS = 2.0
LONGEST_ABSENCE_SECONDS = 60.0
"""So long the data may be unreadable: they are being replaced, or a network disk is late."""


def train_and_follow(
    spec: RunSpec,
    dataset: Dataset,
    folder: RunFolder,
    ranks: Ranks,
    progress: Progress,
    hooks: Hooks,
    resuming: bool,
) -> dict[str, Any]:
    """Train to the end, which `spec.follow` puts off until the run is told to stop. Collective."""
    goes_on = False
    while True:
        run = Run(spec, dataset, folder, ranks, progress, hooks, goes_on)
        try:
            summary = run.train(resuming or goes_on)
        finally:
            run.close()
        if summary["phase"] != "waiting":
            return summary
        found = _next_data(spec, dataset, ranks, progress, hooks)  # collective
        if found is None:
            summary["phase"] = "stopped"
            if ranks.is_first:
                folder.write_summary(summary)
            return summary
        dataset, goes_on = found, True


def _next_data(
    spec: RunSpec, dataset: Dataset, ranks: Ranks, progress: Progress, hooks: Hooks
) -> Dataset | None:
    """The dataset once it is another; None: told to stop. Collective."""
    progress.message(
        f"waiting for a window after number {window_numbers(dataset)[-1]}: "
        f"tandem prepare NEW {spec.data} --append"
    )
    absent_since: float | None = None
    while not _is_stopped(ranks, hooks):  # collective
        hooks.on_phase("waiting", 0, None)
        found = first_decides(lambda: _digest_at(spec.data))  # collective
        if found is None:
            absent_since = absent_since or time.monotonic()
            if time.monotonic() - absent_since > LONGEST_ABSENCE_SECONDS:
                return together(lambda: Dataset.load(spec.data))  # collective; says what is wrong
        else:
            absent_since = None
            if found != dataset.digest:
                return _opened(spec.data, dataset, found)  # collective
        time.sleep(POLL_SECONDS)
    return None


def _is_stopped(ranks: Ranks, hooks: Hooks) -> bool:
    """One rank asked to stop is every rank asked. Collective: all-reduce."""
    asked = torch.tensor(int(hooks.stop_requested()), device=ranks.device)
    dist.all_reduce(asked, op=dist.ReduceOp.MAX)  # collective
    return bool(asked)


def _digest_at(path: str) -> str | None:
    """Of the dataset that is there now; None: it cannot be read."""
    try:
        return Dataset.load(path, verify="none").digest
    except (Mistake, OSError):
        return None


def _opened(path: str, before: Dataset, digest: str) -> Dataset:
    """Collective."""
    deadline = time.monotonic() + LONGEST_ABSENCE_SECONDS

    def opened() -> Dataset:
        while _digest_at(path) != digest and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return Dataset.load(path)

    dataset = together(opened)  # collective
    check_agreement({"dataset digest": dataset.digest})  # collective
    if before.digest not in dataset.lineage:
        raise Mistake(
            f"the data in {path} were replaced by others than were made from those in training: "
            "add to them by `tandem prepare NEW DATA --append`"
        )
    return dataset
