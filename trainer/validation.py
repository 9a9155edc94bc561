"""Evaluation while training: on the validation split, with early stopping."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.config import EvaluationConfig
from trainer.data.schema import Dataset
from trainer.metrics import RankMetrics
from trainer.mistake import Mistake
from trainer.model import TwoTower
from trainer.progress import Progress
from trainer.ranks import Ranks
from trainer.run import RunFolder
from trainer.run_phases import RunPhases


@dataclass(frozen=True)
class Verdict:
    """What the training loop does after an evaluation."""

    best: bool = False
    """The best so far: its checkpoint is kept."""
    stop: bool = False
    """Patience is at its end."""


class Validation:
    """Evaluates the model in training and decides when it has stopped getting better."""

    def __init__(
        self,
        config: EvaluationConfig,
        dataset: Dataset,
        folder: RunFolder,
        ranks: Ranks,
        progress: Progress,
        metrics: RankMetrics,
        on_evaluation: Callable[[dict[str, float]], None],
        history_length: int | None,
        phases: RunPhases,
    ) -> None:
        self.phases = phases
        self.history_length = history_length
        self.on_evaluation = on_evaluation
        self.config = config
        self.dataset = dataset
        self.folder = folder
        self.ranks = ranks
        self.progress = progress
        self.metrics = metrics
        self.best = float("-inf")
        self.best_step: int | None = None
        self.since_best = 0

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: a resumed run goes on with the same best."""
        return {"best": self.best, "best_step": self.best_step, "since_best": self.since_best}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.since_best = state["since_best"]

    def evaluate(self, model: TwoTower, step: int, epoch: int) -> Verdict:
        """Evaluate and compare with the best so far. Collective."""
        from trainer.retrieval.evaluate import evaluate_model

        started = time.perf_counter()
        values = evaluate_model(
            model,
            self.dataset,
            "validation",
            self.ranks,
            ks=self.config.k,
            users=self.config.users,
            history_length=self.history_length,
            on_progress=self.phases.evaluating,
        )
        self.metrics.observe("tandem_evaluation_seconds", time.perf_counter() - started)
        for name, value in values.items():
            self.metrics.set("tandem_evaluation", value, name)
        if self.ranks.is_first:
            record = {"step": step, "epoch": epoch, "time": time.time(), **values}
            self.folder.append_evaluation(record)
            self.on_evaluation(record)
        metric = self.config.metric
        if metric not in values:
            raise Mistake(
                f"evaluation.metric={metric!r} is not computed; there are {', '.join(values)}"
            )
        self.progress.message(f"epoch {epoch + 1}: validation {metric} {values[metric]:.4f}")
        better = values[metric] > self.best
        if better:
            self.best, self.best_step = values[metric], step
        self.since_best = 0 if better else self.since_best + 1
        patience = self.config.patience
        return Verdict(best=better, stop=patience is not None and self.since_best >= patience)
