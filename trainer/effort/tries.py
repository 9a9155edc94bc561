"""Trainings that are tried: each on one rank in a folder RUN/tries/... that is gone afterwards, or
once the run begins.

What a try found is a line of RUN/tries.jsonl: a start that was cut off goes on with what is there.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.base.mistake import Mistake
from trainer.base.run_files import TRIES_FILE, TRIES_FOLDER
from trainer.base.typed import read_as
from trainer.config.default_preset import USERS_EVALUATED
from trainer.config.evaluation_section import EvaluationConfig
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.effort.proposals import Proposal, changed
from trainer.files.filesystems import stays_within
from trainer.files.json_files import committed
from trainer.files.line_file import LineFile, read_records
from trainer.files.storage import StoragePath, remove_tree, storage_path
from trainer.launch.causes import WorkFailedError
from trainer.launch.launcher import Launcher, Worker
from trainer.observe.progress import Progress
from trainer.observe.waiting import waits
from trainer.retrieval.baselines.measured import Asking, measure_baselines
from trainer.retrieval.evaluate import evaluate_split
from trainer.retrieval.opened import OpenedRun
from trainer.run.folder import RunSpec
from trainer.run.start import remove_left_over
from trainer.train import run_worker
from trainer.watch.finite import NonFiniteError

LEAST_EPOCHS = 2
MOST_STEPS = 8_000
"""Of a try: of large data it sees a slice."""
QUICK_BASELINES = {"popularity": 1 << 62, "item neighbours": 200_000, "EASE": 4_000}
"""By the most items for which they take seconds."""
MOST_WORK = 2 * 10**10
"""Training rows times users asked: a minute or two."""
NAME = "tried"
"""What such a training records as its preset: settings of a program's, which fit the data as they
are."""


@dataclass(frozen=True)
class Tried:
    """What one try found."""

    name: str
    why: str
    digest: str
    """Of the config that was trained."""
    dataset_digest: str
    metric: str
    best: float
    """Of the metric, on validation."""
    best_epoch: int
    """Epochs trained by then."""
    epochs: int
    """It was to have."""
    seconds: float
    failed: str | None = None
    """Why it could not be trained: nothing of it was measured then."""
    is_slice: bool = False
    """Whether it saw a part of its epochs alone, of data that are large."""
    curve: tuple[float, ...] = ()
    """Of the metric, after each epoch."""
    folder: str | None = None
    """Name of the folder that its model was left in, beside others'."""


class Tries:
    """Tries of a run that is yet to begin.

    Args:
        spec: of the run; its config is not looked at.
    """

    def __init__(
        self, spec: RunSpec, dataset: Dataset, launcher: Launcher, progress: Progress
    ) -> None:
        self._spec, self.dataset = spec, dataset
        self.launcher, self.progress = launcher, progress
        folder = storage_path(spec.out)
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = LineFile(folder / TRIES_FILE)
        records = (_tried(record) for record in read_records(folder / TRIES_FILE))
        self._known = {
            tried.digest: tried
            for tried in records
            if tried is not None and tried.dataset_digest == dataset.digest
        }
        models = {each.folder for each in self._known.values() if each.folder is not None}
        remove_left_over(folder / TRIES_FOLDER, models)

    def of(self, chosen: Sequence[Proposal], share: float, keeps: bool = False) -> list[Tried]:
        """What became of each, in their order; those after one that ended the launcher are missing.

        Args:
            share: part of its epochs that each is trained for.
            keeps: leave the models there, until the tries are over.
        """
        specs = {each.name: self._spec_of(each, share) for each in chosen}
        why = {each.name: each.why for each in chosen}
        found = {
            name: replace(self._known[spec.config.digest], name=name, why=why[name])
            for name, spec in specs.items()
            if self._is_known(spec.config, keeps)
        }
        waiting = {name: spec for name, spec in specs.items() if name not in found}
        work = try_and_keep if keeps else try_out
        with waits(self.progress, lambda: f"tried {len(found)} of {len(specs)}"):
            try:
                for name, result in self.launcher.each(work, waiting):
                    found[name] = self._noted(name, why[name], specs[name].config, result)
            except WorkFailedError as error:
                self.progress.message(f"a try failed, and those after it are left out: {error}")
        return [found[each.name] for each in chosen if each.name in found]

    def _is_known(self, config: Config, keeps: bool) -> bool:
        tried = self._known.get(config.digest)
        if tried is None:
            return False
        return not keeps or tried.failed is not None or self.model_of(tried) is not None

    def model_of(self, tried: Tried) -> StoragePath | None:
        """Folder of the model that a try left; None: it is not there."""
        if tried.folder is None or not stays_within(tried.folder):
            return None
        folder = storage_path(self._spec.out) / TRIES_FOLDER / tried.folder
        return folder if committed(folder / "checkpoints") else None

    def _noted(self, name: str, why: str, config: Config, result: dict[str, Any]) -> Tried:
        tried = Tried(
            name=name,
            why=why,
            digest=config.digest,
            dataset_digest=self.dataset.digest,
            metric=config.evaluation.metric,
            epochs=config.training.epochs,
            is_slice=steps_of(config, self.dataset) > MOST_STEPS,
            **result,
        )
        self._known[tried.digest] = tried
        self._lines.append(json.dumps(asdict(tried)))
        self._lines.flush()  # an object store would have it half a minute later
        self.progress.message(told(tried))
        return tried

    def baselines(self, evaluation: EvaluationConfig) -> dict[str, float]:
        """The metric of what nothing is trained for, on the same users; {} where it has none.

        Of the closed forms those that take seconds on data of the size.
        """
        users = evaluation.users or USERS_EVALUATED
        names = [n for n, most in QUICK_BASELINES.items() if self.dataset.num_items <= most]
        if self.dataset.splits["train"].positives * users > MOST_WORK:
            names = ["popularity"]
        cutoff = int(evaluation.metric.partition("@")[2])
        asking = Asking(self._spec.data, "validation", (cutoff,), users, names)
        with waits(self.progress, "closed forms, for which nothing is trained"):
            ((_, found),) = self.launcher.each(measure_baselines, {"baselines": asking})
        return {each["name"]: each["values"][evaluation.metric] for each in found}

    def _spec_of(self, proposal: Proposal, share: float) -> RunSpec:
        config = proposal.config
        training, evaluation = config.training, config.evaluation
        least = min(training.epochs, LEAST_EPOCHS)
        most_steps = training.max_steps or MOST_STEPS
        config = changed(
            config,
            {
                "data": {"train_splits": ("train",)},
                "training": {
                    "epochs": max(least, math.ceil(share * training.epochs)),
                    "max_steps": min(most_steps, MOST_STEPS),
                },
                "evaluation": {"every_epochs": 1, "users": evaluation.users or USERS_EVALUATED},
                "metrics": {"enabled": False, "track": ()},
            },
        )
        return replace(self._spec, preset=NAME, config=config, resume=False, start_from=None)


def steps_of(config: Config, dataset: Dataset) -> int:
    """All of its epochs on train, whatever ends them before."""
    training, rows = config.training, dataset.splits["train"].positives
    return training.epochs * -(-rows // training.global_batch_size)


def told(tried: Tried) -> str:
    """One line of what a try found."""
    if tried.failed is not None:
        return f"  {tried.name:<24} cannot be trained: {tried.failed}"
    epochs = "epoch" if tried.best_epoch == 1 else "epochs"
    return (
        f"  {tried.name:<24} {tried.metric} {tried.best:.4f} on validation after "
        f"{tried.best_epoch} {epochs}, {tried.seconds:,.0f} s: {tried.why}"
    )


def try_out(spec: RunSpec, worker: Worker) -> dict[str, Any]:
    """Train and forget: the best value on validation, when, and how long it took. On one rank.

    A model that does not fit, or whose loss leaves the numbers there are, is no reason to end.
    """
    found = try_and_keep(spec, worker)
    remove_tree(storage_path(spec.out) / TRIES_FOLDER / found["folder"])
    return {**found, "folder": None}


def try_and_keep(spec: RunSpec, worker: Worker) -> dict[str, Any]:
    """The same, with the model left where `folder` says."""
    evaluated: list[tuple[float, int]] = []

    def noted(values: dict[str, float]) -> None:
        evaluated.append((values[spec.config.evaluation.metric], int(values["epoch"]) + 1))

    started, failed = time.perf_counter(), None
    hooks = replace(worker.hooks, on_evaluation=noted)
    name = f"{spec.config.digest[:12]}-{uuid.uuid4().hex[:8]}"  # one tried again has another
    folder = storage_path(spec.out) / TRIES_FOLDER / name
    try:
        run_worker(replace(spec, out=str(folder)), worker.progress, hooks)
        if not evaluated:  # ended within its first epoch
            evaluated.append((_evaluated(str(folder), spec.config, worker), 1))
    except (Mistake, NonFiniteError) as error:
        failed = str(error)
    except BaseException:
        remove_tree(folder)
        raise
    best, epoch = max(evaluated, key=lambda each: each[0], default=(0.0, 0))
    seconds = time.perf_counter() - started
    curve = [value for value, _ in evaluated]
    return {
        "best": best,
        "best_epoch": epoch,
        "seconds": seconds,
        "failed": failed,
        "curve": curve,
        "folder": name,
    }


def _evaluated(run: str, config: Config, worker: Worker) -> float:
    """The metric of a run's newest checkpoint on validation."""
    opened, evaluation = OpenedRun(run, worker.ranks), config.evaluation
    asked = (opened.trained.dataset, "validation", evaluation.k, evaluation.users)
    return evaluate_split(opened.encoder, *asked).values[evaluation.metric]


def _tried(record: dict[str, Any]) -> Tried | None:
    try:
        return read_as(Tried, record)
    except Mistake:  # of another version
        return None
