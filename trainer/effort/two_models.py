"""Two of the models that were tried, as one: what they find together, and the run of the second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.config.default_preset import USERS_EVALUATED
from trainer.effort.proposals import Proposal
from trainer.effort.tries import NAME, Tried, Tries
from trainer.files.storage import storage_path
from trainer.launch.causes import WorkFailedError
from trainer.launch.here import is_first_process
from trainer.launch.launcher import GO_ON, Launcher, Worker
from trainer.observe.waiting import waits
from trainer.retrieval.evaluate import evaluate_split
from trainer.retrieval.joining.joined import ratio_of_spreads, stand_beside
from trainer.retrieval.opened import OpenedRun
from trainer.run.asked.beside import beside_folder, note_trained, read_beside
from trainer.run.folder import RunSpec
from trainer.train import resumable, train_on_rank

WEIGHTS = (1.0, 0.5)
"""Tried of the second of two models: as much as the first, which is the better one, or half."""
GAIN = 1.01
"""Times the better model's own quality that two have to find: they cost twice the columns."""


@dataclass(frozen=True)
class Pair:
    """Two models as one, and what they find together."""

    first: str
    """Names of proposals."""
    second: str
    weight: float
    """Of the second's scores."""
    value: float
    """Of the metric."""

    @property
    def name(self) -> str:
        return f"{self.first} + {self.second}"

    def told(self, metric: str) -> str:
        """One line."""
        times = "" if self.weight == 1 else f", the second's times {self.weight:g}"
        found = f"{metric} {self.value:.4f} on validation"
        return f"  {self.name:<24} {found}: the scores of both added{times}"


@dataclass(frozen=True)
class AskedPair:
    """Two models that tries left, and what they are asked."""

    first: str
    """Folders."""
    second: str
    metric: str
    users: int


def best_pair(ranked: Sequence[tuple[Proposal, Tried]], tries: Tries) -> Pair | None:
    """The best model and the one that adds most to it, where that is enough.

    Never of models that saw slices of their data, or that are not there any more.
    """
    found = _measured(ranked, tries)
    best = max(found, key=lambda pair: pair.value, default=None)
    return best if best is not None and best.value >= GAIN * ranked[0][1].best else None


def _measured(ranked: Sequence[tuple[Proposal, Tried]], tries: Tries) -> list[Pair]:
    measured: list[Pair] = []
    if not ranked or not _is_whole(ranked[0][1], tries):
        return measured
    (best, tried), *others = ranked
    users = best.config.evaluation.users or USERS_EVALUATED
    first = str(tries.model_of(tried))
    asked = {
        other.name: AskedPair(first, str(tries.model_of(its)), tried.metric, users)
        for other, its in others
        if _is_whole(its, tries)
    }
    with waits(tries.progress, lambda: f"measured {len(measured)} of {len(asked)} beside the best"):
        try:
            for name, found in tries.launcher.each(measure_pair, asked):
                weight, value = max(found, key=lambda each: each[1])
                measured.append(Pair(best.name, name, weight, value))
                tries.progress.message(measured[-1].told(tried.metric))
        except (Mistake, WorkFailedError) as error:
            tries.progress.message(f"two models could not be joined: {error}")
    return measured


def _is_whole(tried: Tried, tries: Tries) -> bool:
    return not tried.is_slice and tries.model_of(tried) is not None


def measure_pair(asked: AskedPair, worker: Worker) -> list[tuple[float, float]]:
    """(weight of the second, the metric on validation) of two models as one. On one rank."""
    first, second = (OpenedRun(each, worker.ranks) for each in (asked.first, asked.second))
    dataset, found = first.trained.dataset, []
    cutoff = int(asked.metric.partition("@")[2])
    ratio = ratio_of_spreads(first.encoder, second.encoder, dataset)
    for weight in WEIGHTS:
        stand_beside(first.encoder, second.encoder, weight * ratio)
        measured = evaluate_split(first.encoder, dataset, "validation", [cutoff], asked.users)
        found.append((weight, measured.values[asked.metric]))
    return found


def train_second(
    spec: RunSpec, summary: dict[str, Any], launcher: Launcher, go_on: str = GO_ON
) -> dict[str, Any] | None:
    """Train the model that is to stand beside the run's own, once that is trained to its end.

    Args:
        summary: of the run's own.
        go_on: what the user is told to do after a failure.

    Returns:
        Its summary; None: there is none, or it is trained already.
    """
    run = storage_path(spec.out)
    beside = read_beside(run)
    if beside is None or beside.is_trained or summary["phase"] != "finished":
        return None
    if is_first_process():
        say(f"now the model that is to stand beside it: {beside.name}")
    out = str(beside_folder(run))
    second = RunSpec(NAME, beside.config, spec.data, out, resume="auto")
    found: dict[str, Any] = launcher.run(train_on_rank, second, resumable(second, go_on))
    if found["phase"] == "finished" and is_first_process():
        note_trained(run)
    return found
