"""What a run says of itself while it trains: metrics on the device, lines, endpoint, progress."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from trainer.config.training_section import TrainingConfig
from trainer.distributed.hooks import Hooks
from trainer.distributed.ranks import Ranks
from trainer.loader.batch import Batch
from trainer.loader.loader import Loader
from trainer.observe.metrics import RankMetrics
from trainer.observe.phases import PHASES, Phase, PhaseClock
from trainer.observe.progress import Progress
from trainer.observe.step_values import StepValues, means_of
from trainer.run.folder import RunFolder
from trainer.run.place import Place
from trainer.watch.finite import FiniteWatch, raise_together
from trainer.watch.vitals import Vitals, with_table_norms

SAMPLES = 2
"""Steps between two readings whose statistics are computed."""
SELDOM = {
    "checkpoint_seconds": "tandem_checkpoint_seconds",
    "checkpoint_write_seconds": "tandem_checkpoint_write_seconds",
    "checkpoint_failures": "tandem_checkpoint_failures_total",
    "evaluation_seconds": "tandem_evaluation_seconds",
}
"""What a line of metrics.jsonl says where it happened since the line before: rank 0's newest."""


class Recorder:
    """Collects each step's statistics and speaks every `log_every_steps` steps.

    Between those steps nothing waits for the device. Every rank calls the same methods: the
    statistics of all ranks are brought together by one all-gather when they are read.
    """

    def __init__(
        self,
        ranks: Ranks,
        folder: RunFolder,
        metrics: RankMetrics,
        progress: Progress,
        vitals: Vitals,
        finite: FiniteWatch,
        loader: Loader,
        total_steps: int,
        global_batch_size: int,
        log_every_steps: int,
        hooks: Hooks,
    ) -> None:
        self.ranks = ranks
        self.folder = folder
        self.metrics = metrics
        self.progress = progress
        self.clock = PhaseClock(ranks.device)
        self.vitals = vitals
        self.finite = finite
        self.total_steps = total_steps
        self.loader = loader
        self._skipped_rows = 0
        self.global_batch_size = global_batch_size
        self.log_every_steps = log_every_steps
        self.hooks = hooks
        self.stop_agreed = False
        self.beside: dict[str, float] = {}
        """What lines of metrics repeat besides."""
        self.examples_per_second = 0.0
        self._values = StepValues()
        self._was_watched = False
        self._seldom: dict[str, float] = {}
        """What lines of metrics said last of what happens between them."""
        self._batch: Batch | None = None
        """The last whole one."""
        self._since = _Window()
        self._last = time.perf_counter()

    def record(
        self, place: Place, outputs: dict[str, Tensor], wait_seconds: float, batch: Batch
    ) -> None:
        """One finished step, trained on `batch` (on the host). Collective: an all-reduce that is
        not waited for, and `flush` every `log_every_steps` steps."""
        now = time.perf_counter()
        self._values.add(outputs)
        asked = self.hooks.stop_requested()
        called = self.finite.end_step(outputs["loss"], asked)  # collective
        rows = self._rows_of(place)
        self._since.add(now - self._last, wait_seconds, rows)
        self.metrics.observe_step(place.step, now - self._last, wait_seconds, batch.local_rows)
        self._last = now
        if rows == self.global_batch_size or self._batch is None:
            self._batch = batch
        self.hooks.on_step(place.step)
        if called or place.step % self.log_every_steps == 0:
            self.flush(place)

    def watches(self, step: int) -> bool:
        """Whether a step's statistics are computed and kept: SAMPLES between two readings, and
        the first of a start. Theirs are some thirty small kernels, 3 % of a step on a CPU."""
        every = max(self.log_every_steps // SAMPLES, 1)
        watched = step % every == 0 or not (self._values or self._was_watched)
        self._was_watched |= watched
        return watched

    def restart_clock(self) -> None:
        """Do not count what happened since the last step as training time."""
        self._last = time.perf_counter()

    def flush(self, place: Place) -> None:
        """Read, average over ranks, check and publish. Collective: all-gather."""
        if not self._values:
            return
        steps = self._values.read()  # device-to-host sync
        self._check_finite(place, steps)
        self._agree_on_stopping()
        window, self._since = self._since, _Window()
        own = means_of(steps, window.rows)
        phases, vitals = self.clock.read(), self._read_vitals(window)
        skipped = {"rows_dropped": float(self.loader.skipped_rows)}
        ranks = self._of_all_ranks({**own, **_phase_means(phases), **vitals, **skipped})
        means = {name: sum(values) / len(values) for name, values in ranks.items()}
        if window.seconds > 0:
            self.examples_per_second = sum(window.rows) / window.seconds
        record = {
            **self._standing(place, window),
            **with_table_norms(means),
            "rank_loss/lowest": min(ranks["loss"]),
            "rank_loss/highest": max(ranks["loss"]),
            "rows_dropped": sum(ranks["rows_dropped"]),
        }
        self._publish(record, {name: means[name] for name in own})
        self._publish_own(own["loss"], phases, with_table_norms(vitals))
        if self.ranks.is_first:
            self.folder.append_metrics(record)
        self.progress.update(
            "training",
            place.step,
            self.total_steps,
            loss=means["loss"],
            rows_per_second=self.examples_per_second,
        )

    def _standing(self, place: Place, window: _Window) -> dict[str, Any]:
        """Where the run stands and how fast it goes; the same on all ranks, but for times."""
        latest = self.metrics.latest
        seldom = {key: latest[name] for key, name in SELDOM.items() if name in latest}
        new = {key: value for key, value in seldom.items() if self._seldom.get(key) != value}
        self._seldom = seldom
        return {
            "step": place.step,
            "epoch": place.epoch,
            "epochs_trained": self._epochs_trained(place),
            "total_steps": self.total_steps,
            "examples_per_second": self.examples_per_second,
            "step_seconds": window.seconds / len(window.rows),
            "data_wait_share": window.wait_seconds / max(window.seconds, 1e-9),
            **new,
            **self.beside,
            "time": time.time(),
        }

    def _read_vitals(self, window: _Window) -> dict[str, float]:
        assert self._batch is not None
        return self.vitals.read(self._batch, is_whole=window.rows[-1] == max(window.rows))

    def _rows_of(self, place: Place) -> int:
        """Rows of the step that ended at `place`, over all ranks."""
        if not place.epoch_ended:
            return self.global_batch_size
        return self.loader.last_rows_of(place.epoch, self.global_batch_size)

    def _epochs_trained(self, place: Place) -> float:
        """Epochs with their fraction: where the data stands."""
        if place.position is None:
            return 0.0
        epoch, step = place.position["epoch"], place.position["step"]
        return float(epoch + (step / self.loader.steps_of(epoch) if step else 0))

    def _publish(self, record: dict[str, Any], parts: dict[str, float]) -> None:
        """What is the same on every rank."""
        self.metrics.publish_steps()
        self.metrics.set("tandem_loss", record["loss"])
        for name, value in parts.items():
            if name != "loss":
                self.metrics.set("tandem_loss_part", value, name)
        self.metrics.set("tandem_total_steps", self.total_steps)
        self.metrics.set("tandem_epoch", record["epochs_trained"])
        self.metrics.set("tandem_world_size", self.ranks.world_size)

    def _publish_own(
        self, loss: float, phases: list[dict[Phase, float]], vitals: dict[str, float]
    ) -> None:
        """What is this rank's own."""
        skipped, self._skipped_rows = self._skipped_rows, self.loader.skipped_rows
        self.metrics.add("tandem_rows_dropped_total", self._skipped_rows - skipped, "corrupt")
        self.metrics.set("tandem_rank_loss", loss)
        for seconds_by_phase in phases:
            for phase, seconds in seconds_by_phase.items():
                self.metrics.observe("tandem_step_phase_seconds", seconds, phase)
        for name, value in vitals.items():
            metric, _, label = name.partition("/")
            self.metrics.set(f"tandem_{metric}", value, label or None)

    def _agree_on_stopping(self) -> None:
        """One rank asked to stop is every rank asked. Collective: all-reduce."""
        asked = torch.tensor(int(self.hooks.stop_requested()), device=self.ranks.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)  # collective
        self.stop_agreed = bool(asked)

    def _of_all_ranks(self, own: dict[str, float]) -> dict[str, list[float]]:
        """Each value's list of what the ranks have; all have the same names. Collective."""
        names = sorted(own)
        own_N = torch.tensor([own[n] for n in names], dtype=torch.float64, device=self.ranks.device)
        all_X = own_N.new_empty(self.ranks.world_size * len(names))
        dist.all_gather_into_tensor(all_X, own_N)  # collective
        return dict(zip(names, all_X.view(-1, len(names)).T.tolist(), strict=True))

    def _check_finite(self, place: Place, steps: list[dict[str, float]]) -> None:
        """Stop all ranks if any met something that is not finite. Collective: all-gather."""
        finding = self.finite.find(place.step, steps)  # device-to-host sync
        if finding is not None:
            self.metrics.add("tandem_nonfinite_steps_total")
        raise_together(finding)  # collective


def recorder_of(
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    config: TrainingConfig,
    ranks: Ranks,
    folder: RunFolder,
    metrics: RankMetrics,
    progress: Progress,
    loader: Loader,
    total_steps: int,
    place: Place,
    hooks: Hooks,
) -> Recorder:
    """The recorder of a model in training, from `place` on."""
    inputs, every = model.module.inputs, config.log_every_steps
    return Recorder(
        ranks,
        folder,
        metrics,
        progress,
        Vitals(model, inputs, optimizer, ranks.device, place.step, every),
        FiniteWatch(model.module.head, inputs, ranks.device),
        loader,
        total_steps,
        config.global_batch_size,
        every,
        hooks,
    )


def _phase_means(steps: list[dict[Phase, float]]) -> dict[str, float]:
    """Mean seconds a step of each phase; the same phases on every rank."""
    return {
        f"phase_seconds/{phase}": sum(step.get(phase, 0.0) for step in steps) / len(steps)
        for phase in PHASES
    }


class _Window:
    """Host times since the last reading."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        """Of each step."""
        self.seconds = 0.0
        self.wait_seconds = 0.0

    def add(self, seconds: float, wait_seconds: float, rows: int) -> None:
        self.rows.append(rows)
        self.seconds += seconds
        self.wait_seconds += wait_seconds
