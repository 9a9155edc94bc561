"""What metrics cost: CPU time of all that is there for them, against that of the steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import losses.module
from tests.datasets import make_dataset
from tests.test_training import small_config
from trainer.finite import FiniteWatch
from trainer.metrics import RankMetrics
from trainer.phases import PhaseClock
from trainer.progress import SilentProgress
from trainer.recorder import Recorder
from trainer.run import RunSpec
from trainer.task import FrequencyCorrection
from trainer.train import run_worker
from trainer.vitals import Vitals

MOST_SHARE = 0.01
MOST_WATCH_SHARE = 0.03
"""Of looking for NaN in every step. Half of it is this measurement: ten timed calls a step."""
REALISTIC: dict[str, dict[str, Any]] = {
    "model": {"dim": 64, "output_dim": 64, "hidden": (128,)},
    "training": {"epochs": 80, "global_batch_size": 2048, "log_every_steps": 50, "max_steps": 200},
    "checkpoint": {"every_steps": 1000},
    "metrics": {"enabled": True},
}


class Meter:
    """CPU seconds of this thread spent in some functions, nested calls counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.by_name: dict[str, float] = {}
        self._depth = 0

    def metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **keywords: Any) -> Any:
            self._depth += 1
            started = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.thread_time() - started
                    name = function.__qualname__
                    spent = self.by_name.get(name, 0.0) + time.thread_time() - started
                    self.by_name[name] = spent

        return measured


@pytest.mark.slow
def test_metrics_cost_less_than_a_hundredth_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "data", users=300, items=200, rows=6000, row_group_rows=1024)
    meter = Meter()
    for owner, name in (
        (Recorder, "record"),
        (Recorder, "flush"),
        (PhaseClock, "start"),
        (PhaseClock, "stop"),
        (PhaseClock, "end_step"),
        (Vitals, "_before_head"),
        (Vitals, "_keep_pooled_norm"),
        (RankMetrics, "render"),
        (FrequencyCorrection, "statistics"),
        (losses.module, "loss_statistics"),
    ):
        monkeypatch.setattr(owner, name, meter.metered(getattr(owner, name)))
    watch = Meter()
    for name in ("_before_head", "_add_columns", "add", "end_step", "find"):
        monkeypatch.setattr(FiniteWatch, name, watch.metered(getattr(FiniteWatch, name)))
    config = small_config(**REALISTIC)
    spec = RunSpec("ml-100k", config, str(tmp_path / "data"), str(tmp_path / "r"))
    started = time.thread_time()
    run_worker(spec, SilentProgress())
    whole = time.thread_time() - started
    inside = sum(watch.by_name[f"FiniteWatch.{name}"] for name in ("end_step", "find"))
    metrics_seconds = meter.seconds - inside  # the recorder calls these two
    steps = whole - metrics_seconds - watch.seconds
    share, watch_share = metrics_seconds / steps, watch.seconds / steps
    print(f"of {steps:.2f} s: metrics {share:.2%} {meter.by_name}; watch {watch_share:.2%}")
    print(watch.by_name)
    assert watch_share < MOST_WATCH_SHARE
    assert share < MOST_SHARE
