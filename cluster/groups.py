"""Groups of workers, one after the other, until the run has come to its end."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from cluster.elastic import GroupWatch, choose, free_room, wait_for_room
from cluster.failures import RunFailedError, first_cause
from cluster.preemption import ListeningTorchConfig, leaving
from cluster.workers import Workers
from trainer.mistake import Mistake
from trainer.progress import Progress
from trainer.ranks import collective_backend
from trainer.stopping import Terminated

RETRY_WAIT_SECONDS = 2.0
COLLECTIVE_SLACK_SECONDS = 300


@dataclass
class Groups:
    """Starts groups: anew after a failure, larger when there is room, none after SIGTERM.

    `worker(payload)` runs in each process; it returns a summary whose "stopped_on_request" says
    that it was asked to stop before its end.
    """

    worker: Callable[[dict[str, Any]], dict[str, Any]]
    payload: dict[str, Any]
    workers: Workers
    global_batch_size: int
    on_gpu: bool
    relay: Any
    progress: Progress
    notes: str
    terminated: threading.Event
    max_failures: int
    step_timeout_seconds: float
    resize_seconds: float
    patience_seconds: float
    verbose: bool
    _started: int = field(default=0, init=False)
    _grows: bool = field(default=False, init=False)
    _hoped: int = field(default=0, init=False)
    """Workers that the next group may have, as it was seen while the last one ran."""

    @property
    def unit(self) -> str:
        return "GPU" if self.on_gpu else "CPU"

    def to_the_end(self) -> dict[str, Any]:
        """The summary of the group that came to the run's end."""
        failures = 0
        while True:
            count = self._count()
            try:
                summary = self.run_group(count)
            except (TrainingFailedError, ray.exceptions.RayError) as error:
                failures += 1
                self._restart_or_raise(error, failures)
                continue
            if not summary["stopped_on_request"]:
                return summary
            if self.terminated.is_set():
                raise Terminated(
                    f"stopped on SIGTERM after step {summary['steps']:,}, with a checkpoint; "
                    "go on with --resume"
                )
            if self._grows:
                self.progress.message(f"growing from {count} workers")
            else:
                self.progress.message(
                    f"a node or worker is taken away (SIGTERM): checkpoint of step "
                    f"{summary['steps']:,} written, going on from there"
                )

    def run_group(self, count: int) -> dict[str, Any]:
        """One group of `count` workers, from its start to its end."""
        self._started += 1
        ray.get(self.relay.begin.remote(self._started, count))
        trainer = TorchTrainer(
            self.worker,
            train_loop_config={**self.payload, "relay": self.relay, "group": self._started},
            torch_config=ListeningTorchConfig(
                backend=collective_backend(self.on_gpu),
                # Longer than ours, which knows the culprit.
                timeout_s=round(self.step_timeout_seconds) + COLLECTIVE_SLACK_SECONDS,
            ),
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=self.on_gpu,
                resources_per_worker={"GPU": 1, "CPU": 1} if self.on_gpu else {"CPU": 1},
                placement_strategy="PACK",
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=self.notes,
                # Both are seen to, and counted, by `to_the_end`.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        watch = GroupWatch(
            ask_to_stop=lambda: self.relay.ask_to_stop.remote(self._started),
            terminated=self.terminated,
            leaving=self._leaving,
            could_grow=lambda: self._could_grow(count),
            look_every_seconds=self.resize_seconds,
        )
        with watch:
            summary = trainer.fit().return_value
        self._grows = watch.grows
        return summary

    def _count(self) -> int:
        if not self.workers.is_elastic:
            return self.workers.least
        hoped, self._hoped = self._hoped, 0
        return wait_for_room(
            self.workers,
            self.global_batch_size,
            self.unit,
            self.progress,
            self.patience_seconds,
            hoped,
        )

    def _leaving(self) -> bool:
        return leaving(ray.get(self.relay.nodes.remote()))

    def _could_grow(self, count: int) -> bool:
        if count == self.workers.most:
            return False
        room = count + free_room(self.unit)
        self._hoped = choose(self.workers, room, self.global_batch_size) or 0
        return self._hoped > count

    def _restart_or_raise(self, error: Exception, failures: int) -> None:
        """Tell the cause and wait a moment, or raise it where a restart would not help."""
        verdict = ray.get(self.relay.verdict.remote())
        cause = RunFailedError(verdict, retry=True) if verdict else first_cause(error)
        if self.verbose:
            self.progress.message(str(error))
        left = self.max_failures - failures
        if self.terminated.is_set():
            raise Terminated(f"stopped on SIGTERM; go on with --resume ({cause})") from error
        if isinstance(cause, Mistake) or not cause.retry or left < 0:
            raise cause from error
        self.progress.message(f"failed: {cause}")
        self.progress.message(f"restarting from the last checkpoint ({left} restarts left)")
        time.sleep(RETRY_WAIT_SECONDS)
