"""How workers are started: `--workers N`, `--address A`. Imports neither Ray nor torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.workers.counts import Device, Workers
from trainer.base.address import LAST_PORT
from trainer.base.mistake import Mistake

if TYPE_CHECKING:
    from trainer.launch.launcher import Launcher

LONGEST_SECONDS = 10_000_000
"""Four months: beyond what any of these waits makes sense, and far below what C's clocks hold."""


@dataclass(frozen=True)
class LaunchOptions:
    """How workers are started, apart from what they train."""

    workers: Workers | None = None
    """How many workers; None: one a GPU, or one for every second CPU."""
    device: Device = "auto"
    """What a worker has for itself: a GPU where the cluster has some; gpu: nothing else."""
    address: str | None = None
    """An existing Ray cluster; None: RAY_ADDRESS, else a local one for this run alone."""
    max_failures: int = 3
    """Restarts after failures, from the last checkpoint; a newer one starts the count anew."""
    step_timeout_seconds: float = 600.0
    """A group of workers that shows no progress for so long counts as hung; times PATIENCE of its
    phase."""
    resize_seconds: float = 30.0
    """An elastic run looks so often for room to grow."""
    patience_seconds: float = 600.0
    """A run waits so long for room for its workers, or for the least of a range."""
    discovery_port: int = 9480
    """First port tried for Prometheus' service discovery."""
    discovery_host: str = "127.0.0.1"
    """Address it listens on; 0.0.0.0 where Prometheus is elsewhere."""
    verbose: bool = False
    """Let Ray and the libraries speak."""

    def __post_init__(self) -> None:
        if self.max_failures < 0:
            raise Mistake(f"--max-failures {self.max_failures}: must be 0 or more")
        for flag, seconds in (
            ("--step-timeout", self.step_timeout_seconds),
            ("--resize-every", self.resize_seconds),
            ("--patience", self.patience_seconds),
        ):
            if not 0 < seconds < LONGEST_SECONDS:
                raise Mistake(
                    f"{flag} {seconds:g}: must be above 0 seconds, and below {LONGEST_SECONDS:,}"
                )
        if not 0 <= self.discovery_port <= LAST_PORT:
            raise Mistake(
                f"--discovery-port {self.discovery_port}: must be 0 (any free one) to {LAST_PORT}"
            )
        if not self.discovery_host:
            raise Mistake("--discovery-host is empty; 0.0.0.0 listens on every address")
        if self.is_here and self.workers is not None:
            self.workers.check_fits_here()

    @property
    def is_here(self) -> bool:
        """Whether the cluster is one of this machine, started for this command alone."""
        return existing_address(self.address) is None


@dataclass(frozen=True)
class ClusterAddress:
    """An existing Ray cluster to train on, and who named it."""

    text: str
    """The word auto, HOST:PORT or ray://HOST:PORT."""
    named_by: str
    """--address, or RAY_ADDRESS."""

    def __post_init__(self) -> None:
        if self.text.startswith(("http://", "https://")):
            raise Mistake(
                f"{self}: a dashboard takes jobs (`tandem submit --address {self.text} -- "
                "COMMAND ...`); to work from here name the cluster itself, as HOST:6379, or auto "
                "on one of its machines"
            )
        if self.text != "auto" and self.host_and_port is None:
            raise Mistake(
                f"{self}: no address of a Ray cluster; give HOST:6379, or auto on one of its "
                "machines"
            )

    @property
    def host_and_port(self) -> tuple[str, int] | None:
        """None: it names none, as "auto" does."""
        found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/\s]+?)\]?:(\d{1,5})", self.text)
        if found is None or not 0 < int(found.group(2)) <= LAST_PORT:
            return None
        return found.group(1), int(found.group(2))

    def __str__(self) -> str:
        return f"{self.named_by} {self.text}"


def existing_address(
    address: str | None, environment: Mapping[str, str] = os.environ
) -> ClusterAddress | None:
    """The cluster to join: what was asked for, else RAY_ADDRESS (set inside Ray jobs), else none.

    None, and "local": a local cluster is started for this command alone.
    """
    named = (("--address", address), ("RAY_ADDRESS", environment.get("RAY_ADDRESS")))
    for name, text in named:
        if text == "local":
            return None
        if text:
            return ClusterAddress(text, name)
    return None


def launcher_for(workers: int | None, address: str | None, verbose: bool = False) -> Launcher:
    """On a cluster that exists, else on this machine: one work on several ranks.

    Raises:
        Mistake: where the address is none, or this machine has too few processors.
    """
    # Under torchrun this process is one of the ranks already.
    if "WORLD_SIZE" in os.environ or existing_address(address) is None:
        from trainer.launch.processes import on_this_machine

        return on_this_machine(workers)
    return _on_ray(workers, address, verbose)


def launcher_of_trials(workers: int, address: str | None, verbose: bool = False) -> Launcher:
    """The same of works of one rank each: here too each has a process of its own, whose memory is
    free again after it."""
    if existing_address(address) is None:
        from trainer.launch.processes import Processes

        return Processes(workers)
    return _on_ray(workers, address, verbose)


def _on_ray(workers: int | None, address: str | None, verbose: bool) -> Launcher:
    from cluster.workers.ray_workers import RayWorkers  # Ray Train: seconds
    from trainer.observe.progress import quiet_libraries

    quiet_libraries(verbose)  # after the import of Ray, which sets its own levels
    count = None if workers is None else Workers.exactly(workers)
    return RayWorkers(LaunchOptions(workers=count, address=address, verbose=verbose))
