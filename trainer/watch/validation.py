"""Evaluation while training: on the validation split, with early stopping."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trainer.config.evaluation_section import EvaluationConfig
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks
from trainer.model.two_tower import TwoTower
from trainer.observe.metrics import RankMetrics
from trainer.observe.progress import Progress
from trainer.run.checkpoint_facts import ValidationState
from trainer.run.folder import RunFolder
from trainer.watch.run_phases import RunPhases


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
        self.state = ValidationState()
        """What a checkpoint holds of it; of a step that is not evaluated yet."""
        self.popularity: dict[str, float] = {}
        """The popularity ranking's values: the same at each evaluation, measured at the first."""

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return self.config.patience is not None and self.state.since_best >= self.config.patience

    def restore(self, state: ValidationState) -> None:
        """Go on as a checkpoint says."""
        self.state = replace(state, evaluated=False)

    def evaluate(self, model: TwoTower, step: int, epoch: int) -> None:
        """Evaluate and compare with the best so far. Collective."""
        from trainer.retrieval.evaluate import evaluate_model

        started = time.perf_counter()
        found = evaluate_model(
            model,
            self.dataset,
            "validation",
            self.ranks,
            ks=self.config.k,
            users=self.config.users,
            history_length=self.history_length,
            baseline=not self.popularity,
            on_progress=self.phases.evaluating,
        )
        self.metrics.observe("tandem_evaluation_seconds", time.perf_counter() - started)
        self.popularity = self.popularity or found.baseline
        values = {**found.values, **self._beside()}
        for name, value in values.items():
            self.metrics.set("tandem_evaluation", value, name)
        if self.ranks.is_first:
            record = {"step": step, "epoch": epoch, "time": time.time(), **values}
            self.folder.append_evaluation(record)
            self.on_evaluation(record)
        value = values[self.config.metric]
        self.progress.message(self._told(epoch, value))
        if self.state.best is None or value > self.state.best:
            self.state = ValidationState(best=value, best_step=step)
        else:
            self.state = replace(self.state, since_best=self.state.since_best + 1)

    def quality(self, steps_per_epoch: int) -> dict[str, Any] | None:
        """The best evaluation: what summary.json says of it; None before the first."""
        if self.state.best is None or self.state.best_step is None:
            return None
        return {
            "metric": self.config.metric,
            "value": self.state.best,
            "popularity": self.popularity.get(self.config.metric),
            "step": self.state.best_step,
            "epoch": -(-self.state.best_step // max(steps_per_epoch, 1)),
            "out_of_patience": self.is_over,
        }

    def _beside(self) -> dict[str, float]:
        """Recall and NDCG of the popularity ranking, as lines of validation.jsonl have them."""
        shown = ("recall", "ndcg")
        return {f"popularity/{k}": v for k, v in self.popularity.items() if k.startswith(shown)}

    def _told(self, epoch: int, value: float) -> str:
        """`epoch 3: validation ndcg@20 0.1697, the best so far (popularity 0.0809)`."""
        metric, best = self.config.metric, self.state.best
        said = f"epoch {epoch + 1}: validation {metric} {value:.4f}"
        if best is None or value > best:
            said += ", the best so far" if best is not None else ""
        else:
            said += f", best {best:.4f}"
        baseline = self.popularity.get(metric)
        return said if baseline is None else f"{said} (popularity {baseline:.4f})"
