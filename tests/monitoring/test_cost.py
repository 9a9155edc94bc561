"""What metrics cost: CPU time of all that is there for them, against that of the steps."""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import losses.module
from tests.datasets import make_dataset
from tests.test_training import small_config
from trainer.loop import TimedBatches, TrainingLoop
from trainer.model.log_q import FrequencyCorrection
from trainer.observe.metrics import RankMetrics
from trainer.observe.phases import PhaseClock
from trainer.observe.progress import SilentProgress
from trainer.run.folder import RunSpec
from trainer.train import run_worker
from trainer.watch.finite import FiniteWatch
from trainer.watch.recorder import Recorder
from trainer.watch.vitals import Vitals

MOST_SHARE = 0.01
MOST_WATCH_SHARE = {1024: 0.04, 2048: 0.03}
"""Of looking for NaN in every step, by batch size."""
SCRAPE_SECONDS = 5.0
"""Between two readings by Prometheus, as deploy/prometheus has it."""
REALISTIC: dict[str, dict[str, Any]] = {
    "model": {"dim": 64, "output_dim": 64, "hidden": (128,)},
    "training": {"epochs": 80, "log_every_steps": 50, "max_steps": 200},
    "checkpoint": {"every_steps": 1000},
    "metrics": {"enabled": True},
}


class Meter:
    """CPU seconds of this thread spent in some functions, nested calls counted once.

    What a timed call costs by being timed is taken off (`overhead_seconds`).
    """

    def __init__(self, overhead_seconds: float) -> None:
        self.overhead_seconds = overhead_seconds
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
                spent = time.thread_time() - started - self.overhead_seconds
                if self._depth == 0:
                    self.seconds += spent
                    name = function.__qualname__
                    self.by_name[name] = self.by_name.get(name, 0.0) + spent

        return measured


def overhead_seconds(calls: int = 20_000) -> float:
    """What `Meter` measures of a function that does nothing."""
    meter = Meter(0.0)
    nothing = meter.metered(lambda: None)
    for _ in range(calls):
        nothing()
    return meter.seconds / calls


def keeping_the_last(trained: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Whoever held a batch last frees it, in 0.1 ms. The recorder would be charged for that."""
    kept: deque[Any] = deque(maxlen=3)

    def keeping(source: Any) -> Any:
        kept.append(trained(source))
        return kept[-1]

    return keeping


def scrape_seconds(metrics: RankMetrics, times: int = 20) -> float:
    """CPU seconds that one reading of the endpoint takes."""
    started = time.thread_time()
    for _ in range(times):
        metrics.render()
    return (time.thread_time() - started) / times


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1024, 2048])
def test_metrics_cost_less_than_a_hundredth_of_a_step(
    batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "data", users=300, items=200, rows=6000, group_events=1024)
    overhead = overhead_seconds()
    meter, watch, loop = Meter(overhead), Meter(overhead), Meter(overhead)
    for owner, name in (
        (Recorder, "record"),
        (Recorder, "flush"),
        (PhaseClock, "start"),
        (PhaseClock, "stop"),
        (PhaseClock, "end_step"),
        (Vitals, "_before_head"),
        (Vitals, "_keep_pooled_norm"),
        (FrequencyCorrection, "statistics"),
        (losses.module, "loss_statistics"),
    ):
        monkeypatch.setattr(owner, name, meter.metered(getattr(owner, name)))
    for name in ("_before_head", "_add_columns", "add", "end_step", "find"):
        monkeypatch.setattr(FiniteWatch, name, watch.metered(getattr(FiniteWatch, name)))
    served: list[RankMetrics] = []
    monkeypatch.setattr(RankMetrics, "serve", lambda metrics, host: served.append(metrics) or host)
    monkeypatch.setattr(TimedBatches, "trained", keeping_the_last(TimedBatches.trained))
    monkeypatch.setattr(TrainingLoop, "train", loop.metered(TrainingLoop.train))
    training = REALISTIC["training"] | {"global_batch_size": batch_size}
    config = small_config(**REALISTIC | {"training": training})
    spec = RunSpec("ml-100k", config, str(tmp_path / "data"), str(tmp_path / "r"))
    run_worker(spec, SilentProgress())
    inside = sum(watch.by_name[f"FiniteWatch.{name}"] for name in ("end_step", "find"))
    metrics_seconds = meter.seconds - inside  # the recorder calls these two
    steps = loop.seconds - metrics_seconds - watch.seconds
    scrape_share = scrape_seconds(served[0]) / SCRAPE_SECONDS
    share, watch_share = metrics_seconds / steps + scrape_share, watch.seconds / steps
    print(f"{batch_size} rows, {steps:.2f} s: metrics {share:.2%}, of which {scrape_share:.2%} for")
    print(f"being read; watch {watch_share:.2%}; {meter.by_name} {watch.by_name}")
    assert watch_share < MOST_WATCH_SHARE[batch_size]
    assert share < MOST_SHARE
