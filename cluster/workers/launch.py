"""`tandem train`: Ray Train starts the workers, each runs `trainer.train.run_worker`.

    driver                                   workers (one a GPU, or a CPU)
    launch -> TorchTrainer.fit  -----------> train_worker -> run_worker(spec)
      ^  live line, service discovery            |
      +---------- Relay (actor) <----------------+  progress, metrics addresses, heartbeats

A failed group of workers is started anew from the last checkpoint, at most `max_failures` times;
the user's mistakes are not tried again. The user reads the first cause, in one message.
"""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.exceptions

from cluster.workers.counts import Resources, Workers
from cluster.workers.elastic import check_divides
from cluster.workers.groups import Groups
from cluster.workers.heartbeat import Heartbeat
from cluster.workers.options import LaunchOptions
from cluster.workers.relay import RelayLink, RelayLog, RelayProgress, RelayReader, start_relay
from cluster.workers.service_discovery import ReachableTargets, ServiceDiscovery
from cluster.workers.session import cluster_resources, metrics_addresses, ray_session
from trainer.base.stopping import terminations
from trainer.distributed.hooks import Hooks
from trainer.observe.progress import TerminalProgress, quiet_libraries
from trainer.run.folder import RunSpec
from trainer.run.state import read_state


def launch(spec: RunSpec, options: LaunchOptions) -> dict[str, Any]:
    """Train `spec` on Ray; returns the run's summary.

    Raises:
        Mistake: the user's mistakes, from the driver or from any worker.
        RunFailedError: when restarts are used up, or a restart would not help.
        Terminated: on SIGTERM and Ctrl-C, once a checkpoint is written.
    """
    wanted = options.workers
    min_cpus = wanted.most if wanted else 1
    with ExitStack() as stack:
        resources = stack.enter_context(ray_session(options.address, min_cpus, options.verbose))
        workers = wanted or Workers.exactly(resources.default_workers)
        workers.check_fits(resources)
        check_divides(workers, spec.config.training.global_batch_size)
        told = stack.enter_context(terminations())
        progress = stack.enter_context(TerminalProgress())
        discovery = ServiceDiscovery(
            spec.out, options.discovery_host, options.discovery_port, metrics_addresses
        )
        stack.enter_context(discovery)
        if spec.config.metrics.enabled:
            progress.message(f"metrics: {discovery.url}")
        progress.message(f"starting workers ({workers}), which takes up to a minute")
        relay = start_relay(options.step_timeout_seconds)
        handlers: dict[str, Callable[..., None]] = {
            "update": progress.update,
            "message": progress.message,
            "serving": ReachableTargets(discovery, progress, ray.util.get_node_ip_address()).set,
            "world_size": discovery.keep_ranks_below,
        }
        stack.enter_context(RelayReader(relay, handlers))
        link = RelayLink(relay)
        link.wait_until_up()
        groups = Groups(
            worker=train_worker,
            payload={
                "spec": spec,
                "verbose": options.verbose,
                "step_timeout_seconds": options.step_timeout_seconds,
            },
            workers=workers,
            global_batch_size=spec.config.training.global_batch_size,
            has_gpus=lambda: has_gpus(resources, workers),
            saved_step=lambda: saved_step(spec.out),
            link=link,
            progress=progress,
            # Ray Train's own notes: nobody reads them, checkpoints are ours.
            notes=stack.enter_context(TemporaryDirectory(prefix="tandem-")),
            told=told,
            max_failures=options.max_failures,
            step_timeout_seconds=options.step_timeout_seconds,
            resize_seconds=options.resize_seconds,
            patience_seconds=options.patience_seconds,
            verbose=options.verbose,
        )
        return groups.to_the_end()


def has_gpus(at_start: Resources, workers: Workers) -> bool:
    """Whether the next group trains on GPUs: a range may find them only now, or no longer."""
    if not workers.is_elastic:
        return at_start.gpus > 0
    try:
        return cluster_resources().gpus > 0
    except (ray.exceptions.RayError, ConnectionError, RuntimeError):  # it does not answer, now
        return at_start.gpus > 0


def saved_step(run: str) -> int:
    """Step of the newest checkpoint of RUN; 0 where there is none, or none that is seen here."""
    try:
        return read_state(run).checkpoint_step or 0
    except (ValueError, OSError):
        return 0


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """What each worker process runs. Ray has set RANK, WORLD_SIZE, … and made the process group."""
    quiet_libraries(payload["verbose"])
    from trainer.train import run_worker  # torchrec is imported in workers only

    relay, group, rank = payload["relay"], payload["group"], int(os.environ["RANK"])
    here = ray.util.get_node_ip_address()
    if rank == 0:
        relay.put.remote(group, "world_size", int(os.environ["WORLD_SIZE"]))
        logging.getLogger("trainer").addHandler(RelayLog(relay, group))
    heartbeat = Heartbeat(relay, group, rank, payload["step_timeout_seconds"])
    heartbeat.start()
    hooks = Hooks(
        on_serving=lambda rank, address: relay.put.remote(group, "serving", rank, address, here),
        on_phase=heartbeat.on_phase,
        on_step=heartbeat.on_step,
        stop_requested=heartbeat.stop_requested,
    )
    try:
        return run_worker(payload["spec"], progress=RelayProgress(relay, group), hooks=hooks)
    finally:
        heartbeat.stop()
