"""`tandem train`: Ray Train starts the workers, each runs `trainer.train.run_worker`.

    driver                                   workers (one a GPU, or a CPU)
    launch -> TorchTrainer.fit  -----------> train_worker -> run_worker(spec)
      ^  live line, service discovery            |
      +---------- Relay (actor) <----------------+  progress, metrics addresses

A failed attempt is started anew from the last checkpoint, at most `max_failures` times; the
user's mistakes are not tried again. The user reads the first cause, in one message.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.failures import RunFailedError, first_cause
from cluster.heartbeat import Heartbeat
from cluster.relay import RelayProgress, RelayReader, start_relay
from cluster.service_discovery import ServiceDiscovery
from cluster.session import Resources, ray_session
from cluster.workers import Workers
from trainer.progress import Progress, TerminalProgress, quiet_libraries
from trainer.run import RunSpec

RETRY_WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class LaunchOptions:
    """How workers are started, apart from what they train."""

    workers: Workers | None = None
    """How many workers; None: one a GPU, or one for every second CPU."""
    address: str | None = None
    """An existing Ray cluster; None: RAY_ADDRESS, else a local one for this run alone."""
    max_failures: int = 3
    """Restarts from the last checkpoint after failures."""
    step_timeout_seconds: float = 600.0
    """A group of workers that finishes no step for so long counts as hung."""
    discovery_port: int = 9480
    """First port tried for Prometheus' service discovery."""
    verbose: bool = False
    """Let Ray and the libraries speak."""

    def __post_init__(self) -> None:
        if self.max_failures < 0:
            raise ValueError(f"--max-failures {self.max_failures}: must be 0 or more")
        if self.step_timeout_seconds <= 0:
            raise ValueError(f"--step-timeout {self.step_timeout_seconds:g}: must be above 0")


def launch(spec: RunSpec, options: LaunchOptions) -> dict[str, Any]:
    """Train `spec` on Ray; returns the run's summary.

    Raises:
        ValueError: the user's mistakes, from the driver or from any worker.
        RunFailedError: when restarts are used up, or a restart would not help.
    """
    wanted = options.workers
    with ray_session(
        options.address, min_cpus=wanted.most if wanted else 1, verbose=options.verbose
    ) as resources:
        workers = wanted or Workers.exactly(resources.default_workers)
        workers.check_fits(resources)
        with (
            TerminalProgress() as progress,
            ServiceDiscovery(Path(spec.out).name, port=options.discovery_port) as discovery,
        ):
            if spec.config.metrics.enabled:
                progress.message(f"metrics: {discovery.url}")
            relay = start_relay(options.step_timeout_seconds)
            handlers: dict[str, Callable[..., None]] = {
                "update": progress.update,
                "message": progress.message,
                "serving": discovery.set_target,
                "world_size": discovery.keep_ranks_below,
            }
            # Ray Train's own notes: nobody reads them, checkpoints are ours.
            with RelayReader(relay, handlers), TemporaryDirectory(prefix="tandem-") as notes:
                attempts = Attempts(spec, options, workers, resources, relay, progress, notes)
                return attempts.to_the_end()


class Attempts:
    """Starts the worker group until it comes to its end, or failures are used up."""

    def __init__(
        self,
        spec: RunSpec,
        options: LaunchOptions,
        workers: Workers,
        resources: Resources,
        relay: Any,
        progress: Progress,
        storage: str,
    ) -> None:
        self.spec = spec
        self.options = options
        self.workers = workers
        self.resources = resources
        self.relay = relay
        self.progress = progress
        self.storage = storage

    def to_the_end(self) -> dict[str, Any]:
        """The summary of the attempt that succeeded."""
        for failures in range(self.options.max_failures + 1):
            try:
                return self.fit(failures)
            except Exception as error:  # Ray's wrapping of whatever a worker raised
                cause = self._cause(error)
                if self.options.verbose:
                    self.progress.message(str(error))
                left = self.options.max_failures - failures
                if isinstance(cause, ValueError) or not cause.retry or left == 0:
                    raise cause from error
            self.progress.message(f"failed: {cause}")
            self.progress.message(f"restarting from the last checkpoint ({left - 1} restarts left)")
            time.sleep(RETRY_WAIT_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    def _cause(self, error: Exception) -> RunFailedError | ValueError:
        """The relay's verdict on hung ranks, else the first cause Ray knows."""
        verdict = ray.get(self.relay.verdict.remote())
        return RunFailedError(verdict, retry=True) if verdict else first_cause(error)

    def fit(self, restarts: int) -> dict[str, Any]:
        """One worker group, from start to end."""
        ray.get(self.relay.begin.remote(restarts))
        on_gpu = self.resources.gpus > 0
        payload = {
            "spec": self.spec,
            "relay": self.relay,
            "restarts": restarts,
            "verbose": self.options.verbose,
        }
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=payload,
            torch_config=TorchConfig(
                backend="nccl" if on_gpu else "gloo",
                # Longer than ours, which knows the culprit.
                timeout_s=round(self.options.step_timeout_seconds) + 300,
            ),
            scaling_config=ScalingConfig(
                num_workers=self.workers.for_ray(),
                use_gpu=on_gpu,
                resources_per_worker={"GPU": 1, "CPU": 1} if on_gpu else {"CPU": 1},
                placement_strategy="PACK",
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=self.storage,
                failure_config=FailureConfig(max_failures=0),  # counted by `to_the_end`
            ),
        )
        return trainer.fit().return_value


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """What each worker process runs. Ray has set RANK, WORLD_SIZE, … and made the process group."""
    quiet_libraries(payload["verbose"])
    from trainer.train import run_worker  # torchrec is imported in workers only

    relay, rank = payload["relay"], int(os.environ["RANK"])
    if rank == 0:
        relay.put.remote("world_size", int(os.environ["WORLD_SIZE"]))
    heartbeat = Heartbeat(relay, payload["restarts"], rank)
    heartbeat.start()
    try:
        return run_worker(
            payload["spec"],
            progress=RelayProgress(relay),
            on_serving=lambda rank, address: relay.put.remote("serving", rank, address),
            on_step=heartbeat.on_step,
        )
    finally:
        heartbeat.stop()
