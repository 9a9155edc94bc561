"""Workers on Ray: Ray Train starts them, each runs the work.

    driver                                      workers (one a GPU, or a CPU)
    RayWorkers.run -> TorchTrainer.fit  ------> on_rank -> work(arguments, worker)
      ^  live line, service discovery              |
      +---------- Relay (actor) <------------------+  progress, metrics addresses, heartbeats

A failed group of workers is started anew, from the last checkpoint of work that has some, at most
`max_failures` times; the user's mistakes are not tried again. The user reads the first cause, in
one message.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.exceptions

from cluster.workers.counts import Device, Resources, Workers, default_workers
from cluster.workers.elastic import Demand, check_divides
from cluster.workers.failures import first_cause
from cluster.workers.groups import Groups
from cluster.workers.heartbeat import Heartbeat
from cluster.workers.options import LaunchOptions, existing_address
from cluster.workers.ray_private import autoscaling_coordinator
from cluster.workers.relay import RelayLink, RelayLog, RelayProgress, RelayReader, start_relay
from cluster.workers.service_discovery import ReachableTargets, ServiceDiscovery
from cluster.workers.session import cluster_resources, metrics_addresses, ray_session
from trainer.base.stopping import Told, terminations
from trainer.distributed.hooks import Hooks
from trainer.launch.launcher import Resumable, Work, failure_noted
from trainer.observe.progress import Progress, TerminalProgress, quiet_libraries
from trainer.observe.waiting import waits

GLANCE_SECONDS = 0.2


@dataclass(frozen=True)
class RayWorkers:
    """Ranks are workers of a Ray cluster: one that exists, or one for this work alone."""

    options: LaunchOptions

    @property
    def is_here(self) -> bool:
        return self.options.is_here

    def run(self, work: Work, arguments: Any, resumable: Resumable | None = None) -> Any:
        """See `Launcher`."""
        options, wanted = self.options, self.options.workers
        with ExitStack() as stack:
            stack.enter_context(failure_noted(resumable))
            # Around the session, which turns standard output away while the live line has it.
            progress = stack.enter_context(TerminalProgress())
            with waits(progress, self._whence):
                resources = self._session(stack)
            workers = wanted or default_workers(resources, options.device)
            workers.check_fits(resources, options.device)
            if resumable is not None:
                check_divides(workers, resumable.global_batch_size)
            told = stack.enter_context(terminations())
            listed: dict[str, Callable[..., None]] = {"world_size": lambda count: None}
            if resumable is not None:
                listed = self._discovery(stack, resumable, progress)
            relay = start_relay(options.step_timeout_seconds)
            shown: dict[str, Callable[..., None]] = {
                "update": progress.update,
                "message": progress.message,
                "waiting": progress.waiting,
            }
            stack.enter_context(RelayReader(relay, shown | listed))
            link = RelayLink(relay)
            with waits(progress, f"starting workers ({workers}), which takes up to a minute"):
                link.wait_until_up(told)
            groups = Groups(
                worker=on_rank,
                payload={
                    "work": work,
                    "arguments": arguments,
                    "verbose": options.verbose,
                    "step_timeout_seconds": options.step_timeout_seconds,
                },
                workers=workers,
                resumable=resumable,
                has_gpus=lambda: has_gpus(resources, workers, options.device),
                link=link,
                demand=Demand(None if options.is_here else autoscaling_coordinator()),
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

    def each(self, work: Work, many: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Each work is a task, with a CPU and, where the cluster has some, a GPU of its own."""
        with ExitStack() as stack:
            resources = self._session(stack)
            told = stack.enter_context(terminations())
            task = ray.remote(alone).options(
                num_cpus=1,
                num_gpus=1 if resources.gpus else 0,
                max_retries=self.options.max_failures,
            )
            wanted = self.options.workers or default_workers(resources, "auto")
            waiting, running = list(many), dict[Any, str]()
            while waiting or running:
                while waiting and len(running) < wanted.most:
                    name = waiting.pop(0)
                    running[task.remote(work, many[name], self.options.verbose)] = name
                for ended in _wait_for_one(list(running), told):
                    yield running.pop(ended), _result(ended)

    @property
    def _whence(self) -> str:
        """What is waited for until there is a session."""
        joined = existing_address(self.options.address)
        return "starting Ray on this machine" if joined is None else f"joining Ray at {joined.text}"

    def _session(self, stack: ExitStack) -> Resources:
        wanted, options = self.options.workers, self.options
        least_cpus = wanted.most if wanted else 1
        return stack.enter_context(ray_session(options.address, least_cpus, options.verbose))

    def _discovery(
        self, stack: ExitStack, resumable: Resumable, progress: Progress
    ) -> dict[str, Callable[..., None]]:
        """Prometheus' list of ranks, and what keeps it."""
        host, port = self.options.discovery_host, self.options.discovery_port
        discovery = ServiceDiscovery(resumable.run, host, port, metrics_addresses)
        stack.enter_context(discovery)
        if resumable.serves_metrics:
            progress.message(f"metrics: {discovery.url}")
        here = ray.util.get_node_ip_address()
        return {
            "serving": ReachableTargets(discovery, progress, here).set,
            "world_size": discovery.keep_ranks_below,
        }


def has_gpus(at_start: Resources, workers: Workers, device: Device) -> bool:
    """Whether the next group trains on GPUs: a range may find them only now, or no longer."""
    if device == "gpu":
        return True
    if not workers.waits:
        return at_start.gpus > 0
    try:
        return cluster_resources().gpus > 0
    except (ray.exceptions.RayError, ConnectionError, RuntimeError):  # it does not answer, now
        return at_start.gpus > 0


def _wait_for_one(references: list[Any], told: Told) -> list[Any]:
    while True:
        ended, _ = ray.wait(references, timeout=GLANCE_SECONDS)
        if told.is_set():
            raise told.ended("")
        if ended:
            return list(ended)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise first_cause(error) from error


def alone(work: Work, arguments: Any, verbose: bool) -> Any:
    """What a task runs: the work on one rank."""
    quiet_libraries(verbose)
    from trainer.launch.here import Here  # torch is imported in workers only
    from trainer.observe.progress import SilentProgress

    return Here(SilentProgress()).run(work, arguments)


def on_rank(payload: dict[str, Any]) -> Any:
    """What each worker process runs. Ray has set RANK, WORLD_SIZE, … and made the process group."""
    quiet_libraries(payload["verbose"])
    from trainer.launch.here import Here  # torch is imported in workers only

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
        launcher = Here(RelayProgress(relay, group), hooks)
        return launcher.run(payload["work"], payload["arguments"])
    finally:
        heartbeat.stop()
