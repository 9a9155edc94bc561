"""Prometheus' HTTP service discovery: stable URLs that list every rank, and every node of Ray.

    scrape_configs:
      - job_name: tandem
        http_sd_configs: [{url: "http://127.0.0.1:9480/targets"}]
      - job_name: ray
        http_sd_configs: [{url: "http://127.0.0.1:9480/ray"}]

The driver serves them from its start to its end. Ranks come and go with restarts; the URLs stay.
"""

import json
import threading
from collections.abc import Callable, Container
from types import TracebackType
from typing import Literal

from trainer.base.address import EVERY_ADDRESS, is_loopback, reachable_address, with_port
from trainer.base.mistake import Mistake
from trainer.observe.http import Page, PortTakenError, SmallServer
from trainer.observe.progress import Progress

DEFAULT_PORT = 9480
PORTS_TRIED = 20


class ServiceDiscovery:
    """Serves GET /targets and /ray. A context manager; `url` is known once it is made.

    Args:
        run: label of every target: the RUN folder's whole path, or its URI. Runs of one name in
            other folders are others.
        host: address listened on.
        port: first port tried; the next free one of PORTS_TRIED is taken. 0: any free port.
        ray_nodes: gives the address of each Ray node's own metrics.
        kind: what is listed; of a served bundle (`run` is its place) its replicas, at /replicas.
    """

    def __init__(
        self,
        run: str,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        ray_nodes: Callable[[], list[str]] = list,
        kind: Literal["rank", "replica"] = "rank",
    ) -> None:
        self._run, self._kind = run, kind
        self._path = "/targets" if kind == "rank" else "/replicas"
        self._ray_nodes = ray_nodes
        self._targets: dict[int, str] = {}
        self._lock = threading.Lock()
        self._http = self._listen(host, port)
        reached_at = reachable_address() if host in EVERY_ADDRESS else host
        self.url = f"http://{with_port(reached_at, self._http.port)}{self._path}"

    def set_target(self, rank: int, address: str) -> None:
        """Rank `rank` serves its metrics at `address` ("host:port") from now on."""
        with self._lock:
            self._targets[rank] = address

    def keep_ranks_below(self, world_size: int) -> None:
        """Forget ranks of a larger worker group that went before."""
        self.keep(range(world_size))

    def keep(self, ranks: Container[int]) -> None:
        """Forget all others."""
        with self._lock:
            self._targets = {r: a for r, a in self._targets.items() if r in ranks}

    def render(self) -> bytes:
        """The list in the form Prometheus asks for."""
        with self._lock:
            targets = sorted(self._targets.items())
        whole = "run" if self._kind == "rank" else "bundle"
        groups = [
            {"targets": [address], "labels": {whole: self._run, self._kind: str(rank)}}
            for rank, address in targets
        ]
        return json.dumps(groups).encode()

    def render_ray(self) -> bytes:
        """The same for the nodes of the Ray cluster that the run is on."""
        # The labels are those of Ray's own list, so that a node in both is one target.
        return json.dumps([{"targets": self._ray_nodes(), "labels": {"job": "ray"}}]).encode()

    def __enter__(self) -> "ServiceDiscovery":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def _listen(self, host: str, port: int) -> SmallServer:
        pages = {
            self._path: Page("application/json", self.render),
            "/ray": Page("application/json", self.render_ray),
        }
        flags = "--discovery-host, --discovery-port"
        try:
            return SmallServer.at_free_port(
                host, port, PORTS_TRIED, pages, "tandem-discovery", flags
            )
        except PortTakenError as error:  # by other runs
            raise Mistake(
                f"--discovery-port {port}: {error.strerror}; choose another, or end a run that is "
                "no longer needed"
            ) from error


class ReachableTargets:
    """Lists what ranks serve, apart from what only another machine than this one reaches.

    Args:
        here: the address of this machine in the cluster.
        flag: of the user's, by which metrics are reached from elsewhere.
    """

    def __init__(
        self,
        discovery: ServiceDiscovery,
        progress: Progress,
        here: str,
        flag: str = "--metrics.host",
    ) -> None:
        self._discovery = discovery
        self._progress = progress
        self._here = here
        self._flag = flag
        self._said = False

    def set(self, rank: int, address: str, machine: str) -> None:
        """Rank `rank`, on `machine`, serves its metrics at `address`."""
        host = address.rpartition(":")[0].strip("[]")
        if machine == self._here or not is_loopback(host):
            self._discovery.set_target(rank, address)
        elif not self._said:
            self._said = True
            self._progress.message(
                f"metrics of ranks on other machines are not listed: on {machine} they are served "
                f"at {host}, for that machine alone; {self._flag} 0.0.0.0 lets Prometheus in"
            )
