"""A run of MLflow's, on the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import time

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus

from trainer.observe.trackers.tracker import PROJECT, Tracked

MOST_PARAMS = 100
"""Of one request, by MLflow's REST API."""


class MLflow:
    """Opens the run of before, or a new one with the settings as its parameters."""

    def __init__(self, tracked: Tracked) -> None:
        self._client = MlflowClient()
        known = tracked.known_id("mlflow")
        self._run_id = known or self._begin(tracked)
        if known:
            self._client.update_run(known, status=RunStatus.to_string(RunStatus.RUNNING))
        self._last_steps: dict[str, int] = {}
        """Newest step of a line's first value: what an earlier start told is not told again."""

    def _begin(self, tracked: Tracked) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id: str = self._client.create_run(place, run_name=tracked.name).info.run_id
        params = [Param(key, value) for key, value in tracked.flat_config.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + MOST_PARAMS])
        tracked.keep_id("mlflow", run_id)
        return run_id

    def log(self, step: int, values: dict[str, float]) -> None:
        first = next(iter(values))
        if first not in self._last_steps:
            told = self._client.get_metric_history(self._run_id, first)
            self._last_steps[first] = max((metric.step for metric in told), default=-1)
        if step <= self._last_steps[first]:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._last_steps[first] = step

    def close(self) -> None:
        self._client.set_terminated(self._run_id)
