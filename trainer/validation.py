"""Evaluation while training: on the validation split, with early stopping."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.config import EvaluationConfig
from trainer.data.schema import Dataset
from trainer.metrics import RankMetrics
from trainer.model import TwoTower
from trainer.progress import Progress
from trainer.ranks import Ranks
from trainer.run import RunFolder


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
    ) -> None:
        self.on_evaluation = on_evaluation
        self.config = config
        self.dataset = dataset
        self.folder = folder
        self.ranks = ranks
        self.progress = progress
        self.metrics = metrics
        self.best = float("-inf")
        self.since_best = 0

    def evaluate(self, model: TwoTower, step: int, epoch: int) -> bool:
        """Evaluate; True: patience is at its end. Collective."""
        from trainer.retrieval.evaluate import evaluate_model

        started = time.perf_counter()
        values = evaluate_model(
            model,
            self.dataset,
            "validation",
            self.ranks,
            ks=self.config.k,
            users=self.config.users,
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
            raise ValueError(
                f"evaluation.metric={metric!r} is not computed; there are {', '.join(values)}"
            )
        self.progress.message(f"epoch {epoch + 1}: validation {metric} {values[metric]:.4f}")
        better = values[metric] > self.best
        self.best = max(self.best, values[metric])
        self.since_best = 0 if better else self.since_best + 1
        return self.config.patience is not None and self.since_best >= self.config.patience
