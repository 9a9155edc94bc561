"""Groups of workers, one after the other, until the run has come to its end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray.exceptions
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from cluster.workers.counts import Workers
from cluster.workers.elastic import (
    ANY_NUMBER,
    Demand,
    choose,
    wait_for_room,
    worker_resources,
)
from cluster.workers.failures import RunFailedError, first_cause, lost_nodes
from cluster.workers.group_watch import GroupWatch, InThread
from cluster.workers.preemption import ListeningTorchConfig
from cluster.workers.pulses import LONGEST_PATIENCE
from cluster.workers.relay import Look, RelayLink
from trainer.base.mistake import Mistake
from trainer.base.stopping import Told
from trainer.distributed.ranks import collective_backend
from trainer.launch.launcher import Resumable
from trainer.observe.progress import Progress

RETRY_WAIT_SECONDS = 2.0
COLLECTIVE_SLACK_SECONDS = 300


@dataclass
class Groups:
    """Starts groups: anew after a failure, larger when there is room, none once told to end.

    `worker(payload)` runs in each process, and returns what the work did.
    """

    worker: Callable[[dict[str, Any]], dict[str, Any]]
    payload: dict[str, Any]
    workers: Workers
    resumable: Resumable | None
    """None: the work has no checkpoints; it is begun anew after a failure, and never resized."""
    has_gpus: Callable[[], bool]
    """Whether the cluster has GPUs, now."""
    link: RelayLink
    demand: Demand
    progress: Progress
    notes: str
    told: Told
    max_failures: int
    step_timeout_seconds: float
    resize_seconds: float
    patience_seconds: float
    verbose: bool
    _started: int = field(default=0, init=False)
    _failures: int = field(default=0, init=False)
    """Since the newest checkpoint that was there at a failure."""
    _saved: int = field(default=0, init=False)
    _grows: bool = field(default=False, init=False)
    _hoped: int = field(default=0, init=False)
    """Workers that the next group may have, as it was seen while the last one ran."""
    _on_gpu: bool = field(default=False, init=False)
    _last: Look | None = field(default=None, init=False)
    """At the ranks of the group that ran last."""

    @property
    def unit(self) -> str:
        return "GPU" if self._on_gpu else "CPU"

    @property
    def _batch(self) -> int:
        """What the number of workers must divide."""
        return ANY_NUMBER if self.resumable is None else self.resumable.global_batch_size

    @property
    def _go_on(self) -> str:
        return "start it again" if self.resumable is None else self.resumable.go_on

    def _waiting(self) -> None:
        self.demand.want(self.workers.most, self._on_gpu)
        if self.resumable is not None and self._started:
            self.resumable.waiting()

    def _saved_step(self) -> int:
        return 0 if self.resumable is None else self.resumable.saved_step()

    def to_the_end(self) -> Any:
        """What rank 0 returned in the group that came to the work's end."""
        try:
            return self._to_the_end()
        finally:
            self.demand.want(0, self._on_gpu)

    def _to_the_end(self) -> Any:
        self._saved = self._saved_step()
        before = None
        while True:
            count = self._count()
            if before not in (None, count):
                self.progress.message(f"going on with {count} worker{'s' if count > 1 else ''}")
            before = count
            try:
                result = self.run_group(count)
            except (TrainingFailedError, ray.exceptions.RayError) as error:
                self._restart_or_raise(error)
                continue
            if self.resumable is None or result["phase"] != "stopped":
                return result
            self.resumable.check_end(self.told, result)
            if not self._grows:
                self.progress.message(
                    f"a node or worker is taken away (SIGTERM): checkpoint of step "
                    f"{result['steps']:,} written, going on from there"
                )

    def run_group(self, count: int) -> Any:
        """One group of `count` workers, from its start to its end."""
        self._started += 1
        self._last = None
        self.demand.want(self.workers.most - count, self._on_gpu)
        self.link.begin(self._started, count)
        watch = GroupWatch(
            link=self.link,
            group=self._started,
            count=count,
            told=self.told,
            could_grow=lambda: self._could_grow(count),
            can_stop=self.resumable is not None,
            go_on=self._go_on,
            look_every_seconds=self.resize_seconds,
            progress=self.progress,
        )
        fit = InThread(self._trainer(count).fit)
        try:
            watch.until(fit.over)
        finally:
            self._grows, self._last = watch.grows, watch.last
        return fit.result().return_value

    def _trainer(self, count: int) -> TorchTrainer:
        return TorchTrainer(
            self.worker,
            train_loop_config={**self.payload, "relay": self.link.relay, "group": self._started},
            torch_config=ListeningTorchConfig(
                backend=collective_backend(self._on_gpu),
                # Longer than ours, which knows the culprit.
                timeout_s=round(LONGEST_PATIENCE * self.step_timeout_seconds)
                + COLLECTIVE_SLACK_SECONDS,
            ),
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=self._on_gpu,
                resources_per_worker=worker_resources(self._on_gpu),
                placement_strategy="PACK",
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=self.notes,
                # Both are seen to, and counted, by `to_the_end`.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )

    def _count(self) -> int:
        hoped, self._hoped = self._hoped, 0
        self._on_gpu = self.has_gpus()
        return wait_for_room(
            self.workers,
            self._batch,
            self.unit,
            self.progress,
            self.patience_seconds,
            lambda: self.link.room(self._on_gpu),
            self.told,
            hoped,
            self._go_on,
            self._waiting,
        )

    def _could_grow(self, count: int) -> bool:
        if count == self.workers.most or self.resumable is None:
            return False
        self.demand.want(self.workers.most - count, self._on_gpu)
        room = count + (self.link.room(self._on_gpu) or 0)
        self._hoped = choose(self.workers, room, self._batch) or 0
        return self._hoped > count

    def _restart_or_raise(self, error: Exception) -> None:
        """Tell the cause and wait a moment, or raise it where a restart would not help."""
        cause = self._cause(error)
        if self.verbose:
            self.progress.message(str(error))
        if self.told.is_set():
            raise self.told.ended(f"; {self._go_on} ({cause})") from error
        saved = self._saved_step()
        if saved > self._saved:  # the failures before had not kept it from getting on
            self._saved, self._failures = saved, 0
        self._failures += 1
        left = self.max_failures - self._failures
        if isinstance(cause, Mistake) or not cause.retry or left < 0:
            raise cause from error
        self.progress.message(f"failed: {cause}")
        where = "from the last checkpoint" if saved else "from the start"
        self.progress.message(f"restarting {where} ({left} restarts left)")
        time.sleep(RETRY_WAIT_SECONDS)

    def _cause(self, error: Exception) -> RunFailedError | Mistake:
        """The relay's verdict, a node that is gone, or what the workers raised."""
        self._last = self.link.look(self._started, 0) or self._last
        if self._last is not None and self._last.verdict is not None:
            return RunFailedError(self._last.verdict, retry=True)
        cause = first_cause(error)
        if self._last is not None and isinstance(cause, RunFailedError) and cause.retry:
            lost = lost_nodes(self._last.beats, cause.is_consequence)
            if lost:
                return RunFailedError(lost, retry=True)
        return cause
