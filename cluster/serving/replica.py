"""One process of a served bundle: the app of `tandem serve`, and metrics of its own beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from cluster.serving.board import Pulse, tell
from trainer.base.address import EVERY_ADDRESS, reachable_address, with_port
from trainer.base.mistake import Mistake
from trainer.base.typed import nearest
from trainer.observe.http import Page, PortTakenError, SmallServer
from trainer.observe.metrics import TEXT_FORMAT
from trainer.serve.app import build_app
from trainer.serve.bounds import Bounded
from trainer.serve.serve_arguments import ServeArguments
from trainer.serve.server_metrics import ServerMetrics
from trainer.serve.shelf import Shelf

PORTS_TRIED = 8
"""As many replicas a node have metrics where a port is named."""


class Recommender:
    """What Ray Serve makes a replica of.

    Args:
        arguments: fields of ServeArguments.
        board: told where the metrics are; None: nobody asks.

    Raises:
        Mistake: where the bundle cannot be opened on this node, which is named.
    """

    def __init__(self, arguments: Mapping[str, Any], board: Any = None) -> None:
        self._arguments = ServeArguments(**arguments)
        node = ray.util.get_node_ip_address()
        try:
            self._shelf = Shelf(self._arguments.bundle, self._arguments.verify)
        except Mistake as mistake:
            raise Mistake(f"node {node}: {mistake}") from mistake
        self._metrics = ServerMetrics(self._shelf)
        listening = _metrics_server(self._arguments, self._metrics)
        if board is not None and listening is not None:
            host = self._arguments.host
            reached = reachable_address() if host in EVERY_ADDRESS else host
            name = ray.get_runtime_context().get_actor_id()
            tell(board, Pulse(name, with_port(reached, listening.port), node))

    def __serve_build_asgi_app__(self) -> Bounded:
        return build_app(self._arguments, self._shelf, self._metrics)


def _metrics_server(arguments: ServeArguments, metrics: ServerMetrics) -> SmallServer | None:
    """Of this replica alone; None where as many replicas of this node have their ports already."""
    page = Page(TEXT_FORMAT, metrics.render)
    pages, first = {"/": page, "/metrics": page}, arguments.metrics_port
    with suppress(PortTakenError):
        return SmallServer.at_free_port(
            arguments.host, first, PORTS_TRIED, pages, "tandem-metrics", "--metrics-port"
        )
    return None


def application(arguments: ServeArguments, board: Any = None) -> Application:
    """What Ray Serve runs. A replica is given what may wait in it and what it answers."""
    deployment = serve.deployment(
        serve.ingress()(Recommender),
        name=Recommender.__name__,
        num_replicas=arguments.replicas,
        max_ongoing_requests=arguments.waiting + 2 * arguments.batch,
        ray_actor_options={"num_cpus": 1},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(asdict(arguments), board)


def build(arguments: dict[str, Any]) -> Application:
    """For a configuration of Ray Serve (import_path: cluster.serving.replica:build), whose `args`
    are flags of `tandem serve` with underscores.

    Raises:
        Mistake: for a name or a value that is none.
    """
    known = [field.name for field in fields(ServeArguments)]
    for name in arguments:
        if name not in known:
            raise Mistake(f"args: {name!r:.60}: {nearest(name, known)}one of {', '.join(known)}")
    if "bundle" not in arguments:
        raise Mistake("args: no bundle is named")
    return application(ServeArguments(address="auto", **arguments))
