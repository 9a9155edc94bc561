"""Flags of `tandem serve`; imports no server, so that --help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from trainer.base.address import LAST_PORT
from trainer.base.mistake import Mistake
from trainer.base.ranges import check_given, check_ranges

MOST_SECONDS = 3600
MOST_REPLICAS = 10_000


@dataclass(frozen=True)
class ServeArguments:
    """Answer over HTTP from a bundle: POST /recommend, POST /similar, GET /healthz, /metrics,
    /docs."""

    bundle: Annotated[str, tyro.conf.Positional]
    """Folder that `tandem export` wrote, or a link to one: where the link (or what is in its place)
    changes, the server changes over without losing a request."""
    address: str | None = None
    """Answer from a Ray cluster, by Ray Serve: HOST:6379, auto, or local for one of this machine
    alone. Left out: from this process."""
    replicas: int = 1
    """With --address: so many processes answer, with a processor each."""
    host: str = "127.0.0.1"
    """Address listened on. Left out: this machine alone. There is no authentication."""
    port: int = 8000
    """0: any free one, which is told."""
    batch: int = 32
    """Requests that are answered at once, at most."""
    waiting: int = 1024
    """Requests that wait for their turn, at most; others get 503."""
    connections: int = 4096
    """Open connections, at most; others get 503."""
    body_bytes: int = 1 << 20
    """Bytes of a request, at most; larger ones get 413."""
    client_seconds: int = 10
    """A client has so long to send its request, and to take its answer."""
    answer_seconds: int = 30
    """After so long a request that is not answered gets 503."""
    look_seconds: int = 1
    """How often the bundle's place is looked at; SIGHUP looks at once."""
    metrics_port: int = 0
    """With --address: first port tried for metrics of a replica, which --host listens on; 0: any
    free one. Which they are is listed for Prometheus."""
    verify: bool = False
    """Compare the digests of all files before a bundle is used, which reads them."""

    def __post_init__(self) -> None:
        check_given(self, ("host", "address"), ("bundle",))
        check_ranges(
            self,
            port=(0, LAST_PORT),
            batch=(1, 4096),
            waiting=(1, 1 << 20),
            connections=(1, 1 << 20),
            body_bytes=(1, 1 << 30),
            client_seconds=(1, MOST_SECONDS),
            answer_seconds=(1, MOST_SECONDS),
            look_seconds=(1, MOST_SECONDS),
            replicas=(1, MOST_REPLICAS),
            metrics_port=(0, LAST_PORT),
        )
        if self.address is None and (self.replicas > 1 or self.metrics_port):
            named = "--replicas" if self.replicas > 1 else "--metrics-port"
            raise Mistake(f"{named} is of a Ray cluster: name one with --address")
        if self.address is not None and self.port == 0:
            raise Mistake("--port 0: with --address each node listens on the port that is named")
