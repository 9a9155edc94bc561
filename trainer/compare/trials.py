"""Trainings of a comparison: each in a folder of its own, several processes side by side.

A worker process trains one trial after the other on one rank, so no time goes to starting
processes or to gathering between them. A finished trial's result stands in its folder: a comparison
that stopped goes on where it was.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from trainer.base.mistake import Mistake
from trainer.compare.clipping import clipped_log_q
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.files.json_files import read_json, write_json
from trainer.model.trained import load_run
from trainer.observe.progress import Progress, SilentProgress
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import evaluate_split
from trainer.run.folder import RunSpec
from trainer.train import run_worker

POPULARITY_GROUPS = 5
CUT_OFF = 20


class TrainingEndedError(RuntimeError):
    """A training's process is gone."""


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
    trials: Sequence[Trial], folder: Path, workers: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Results by trial name, those found in `folder` taken as they are."""
    results = {trial.name: found for trial in trials for found in _finished(folder, trial)}
    waiting = [trial for trial in trials if trial.name not in results]
    context = get_context("spawn")  # forked processes would share torch's threads
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        futures = {pool.submit(run_trial, trial, str(folder)): trial.name for trial in waiting}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            progress.update("comparing", len(results), len(trials))
    except BrokenProcessPool as error:
        raise TrainingEndedError(
            "the process of a training was ended: the memory does not suffice, most likely; "
            "--workers 1 takes less, and what is finished is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C, none is begun any more
    return results


def _finished(folder: Path, trial: Trial) -> Iterator[dict[str, Any]]:
    file = folder / trial.name / "result.json"
    record = read_json(file) if file.exists() else None
    if isinstance(record, dict) and record.get("digest") == trial.config.digest:
        yield record


def run_trial(trial: Trial, folder: str) -> dict[str, Any]:
    """Train, evaluate, keep the result alone."""
    out = Path(folder) / trial.name
    shutil.rmtree(out, ignore_errors=True)  # a trial that was cut off
    spec = RunSpec("compare", trial.config, trial.data, str(out))
    with clipped_log_q() if trial.clipped else nullcontext():
        summary = run_worker(spec, SilentProgress())
    with process_group() as ranks:
        trained = load_run(out, ranks)
        encoder = Encoder(trained.model, trained.dataset, ranks, trained.config.data.history_length)
        evaluation = evaluate_split(
            encoder, trained.dataset, trial.split, [CUT_OFF], num_groups=POPULARITY_GROUPS
        )
        del trained, encoder
        gc.collect()
    result = {
        "digest": trial.config.digest,
        "values": evaluation.values,
        "groups": evaluation.groups,
        "train_seconds": summary["seconds"],
    }
    shutil.rmtree(out / "checkpoints")
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
