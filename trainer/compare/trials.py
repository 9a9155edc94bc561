"""Trainings of a comparison: each in a folder of its own, several processes side by side.

Each trains on one rank, so no time goes to gathering between ranks. A finished trial's result
stands in its folder: a comparison that stopped goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base.mistake import Mistake
from trainer.compare.clipping import clipped_log_q
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.files.json_files import read_json, write_json
from trainer.launch.causes import WorkFailedError
from trainer.launch.launcher import Launcher, Worker
from trainer.observe.per_user import per_user_file, write_per_user
from trainer.observe.progress import Progress
from trainer.retrieval.evaluate import evaluate_split
from trainer.retrieval.opened import OpenedRun
from trainer.run.folder import RunSpec
from trainer.train import run_worker

POPULARITY_GROUPS = 5
CUT_OFF = 20


@dataclass(frozen=True)
class Trial:
    """One training and its evaluation."""

    name: str
    """Folder under the comparison's, and key of the result."""
    config: Config
    data: str
    split: str
    """"validation" while tuning, "test" for the figures."""
    clipped: bool = False
    """Train with TFRS's floor under Q."""


def run_trials(
    trials: Sequence[Trial], folder: Path, launcher: Launcher, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Results by trial name, those found in `folder` taken as they are."""
    results = {trial.name: found for trial in trials for found in _finished(folder, trial)}
    waiting = {t.name: (t, str(folder)) for t in trials if t.name not in results}
    try:
        for name, result in launcher.each(run_trial, waiting):
            results[name] = result
            progress.update("comparing", len(results), len(trials))
    except WorkFailedError as error:
        raise WorkFailedError(
            f"{error}; what is finished is kept, and the same command goes on from there "
            "(--workers 1 takes less memory)"
        ) from error
    return results


def _finished(folder: Path, trial: Trial) -> Iterator[dict[str, Any]]:
    file = folder / trial.name / "result.json"
    is_whole = file.exists() and per_user_file(folder / trial.name, trial.split).exists()
    record = read_json(file) if is_whole else None
    if isinstance(record, dict) and record.get("digest") == trial.config.digest:
        yield record


def run_trial(given: tuple[Trial, str], worker: Worker) -> dict[str, Any]:
    """Train in a folder below the comparison's, evaluate, keep the result alone."""
    trial, out, ranks = given[0], Path(given[1]) / given[0].name, worker.ranks
    shutil.rmtree(out, ignore_errors=True)  # a trial that was cut off
    spec = RunSpec("compare", trial.config, trial.data, str(out))
    with clipped_log_q() if trial.clipped else nullcontext():
        summary = run_worker(spec, worker.progress, worker.hooks)
    opened = OpenedRun(out, ranks)
    dataset = opened.trained.dataset
    evaluation = evaluate_split(
        opened.encoder,
        dataset,
        trial.split,
        [CUT_OFF],
        num_groups=POPULARITY_GROUPS,
        per_user=True,
    )
    result = {
        "digest": trial.config.digest,
        "values": evaluation.values,
        "groups": evaluation.groups,
        "train_seconds": summary["seconds"],
    }
    shutil.rmtree(out / "checkpoints")
    assert evaluation.per_user is not None
    file = per_user_file(out, trial.split)
    write_per_user(file, evaluation.per_user, dataset.digest)
    write_json(out / "result.json", result)
    return result


def check_dataset(dataset: Dataset) -> None:
    """Raise Mistake where a split that a comparison needs holds no queries."""
    for split in ("validation", "test"):
        if split not in dataset.splits or dataset.splits[split].queries == 0:
            raise Mistake(
                f"{dataset.path} has no queries in its {split} split, and a comparison tunes on "
                "validation and measures on test: prepare it with both"
            )
