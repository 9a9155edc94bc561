"""The driver of a served bundle: starts replicas, lists their metrics, ends them with itself.

    driver                                    each node that has a replica
    serve_on_ray -> Ray Serve's controller --> proxy (HTTP) -> replicas: the app, batches, a bundle
      ^  list of metrics                                         |
      +------------------- Board (actor) <-----------------------+  pulses

Each replica looks at the bundle's place by itself, and changes over without losing a request.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve

from cluster.serving.board import put_up_board
from cluster.serving.nodes import check_nodes
from cluster.serving.replica import application
from cluster.workers.counts import Resources
from cluster.workers.service_discovery import ReachableTargets, ServiceDiscovery
from cluster.workers.session import first_line, metrics_addresses, ray_session
from trainer.base.address import with_port
from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.base.stopping import Told, terminations
from trainer.observe.progress import Progress, TerminalProgress, quiet_libraries
from trainer.observe.waiting import waits
from trainer.serve.serve_arguments import ServeArguments

APPLICATION = "tandem"
GLANCE_SECONDS = 1.0
START_SECONDS = 600.0


def serve_on_ray(arguments: ServeArguments, verbose: bool) -> None:
    """Answer until SIGTERM or Ctrl-C; then the replicas end what they are asked already.

    Raises:
        Mistake: where a node lacks the bundle, the cluster has too little room, or serves already.
    """
    assert arguments.address is not None
    # A link by its own name: what it names may change.
    arguments = replace(arguments, bundle=str(Path(arguments.bundle).absolute()))
    quiet_libraries(verbose)
    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with ExitStack() as stack:
        progress = stack.enter_context(TerminalProgress())
        with waits(progress, f"joining Ray at {arguments.address}"):
            resources = stack.enter_context(
                ray_session(arguments.address, arguments.replicas, verbose)
            )
        told = stack.enter_context(terminations())
        _check_room(arguments, resources)
        check_nodes(arguments.bundle)
        board = _board()
        with waits(progress, f"starting replicas ({arguments.replicas})"):
            stack.enter_context(_deployed(arguments, board, told))
        discovery = ServiceDiscovery(
            arguments.bundle, arguments.host, ray_nodes=metrics_addresses, kind="replica"
        )
        stack.enter_context(discovery)
        address = with_port(arguments.host, arguments.port)
        say(
            f"{arguments.bundle} from {arguments.replicas} replicas: http://{address}/docs on each "
            f"node that has one; metrics: {discovery.url}",
            file=sys.stderr,
        )
        _list_until_told(board, discovery, progress, told)


def _check_room(arguments: ServeArguments, resources: Resources) -> None:
    if arguments.replicas > resources.cpus:
        raise Mistake(
            f"--replicas {arguments.replicas}: the cluster has {resources.cpus} CPUs, one a "
            "replica; ask for fewer, or add nodes"
        )


def _board() -> Any:
    try:
        return put_up_board()
    except ValueError as error:  # Ray has no class for a name that is taken
        raise Mistake(
            "the cluster serves a bundle already, for another `tandem serve`: end that first, or "
            "give its bundle another one to change to"
        ) from error


@contextmanager
def _deployed(arguments: ServeArguments, board: Any, told: Told) -> Iterator[None]:
    """The replicas, up, until the body ends. What a driver that was killed has left goes first."""
    others = [name for name in serve.status().applications if name != APPLICATION]
    if others:
        raise Mistake(
            f"the cluster serves {', '.join(others)} already, by settings that are one cluster's: "
            "end that first, or start a cluster for this"
        )
    serve.shutdown()
    try:
        _start(arguments, board, told)
        yield
    finally:
        serve.shutdown()


def _start(arguments: ServeArguments, board: Any, told: Told) -> None:
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={
                "host": arguments.host,
                "port": arguments.port,
                "keep_alive_timeout_s": arguments.client_seconds,
            },
        )
        target = serve.RunTarget(application(arguments, board), APPLICATION, "/")
        serve.run_many([target], wait_for_applications_running=False)
    except RuntimeError as error:  # the proxies cannot listen there
        raise Mistake(
            f"--host {arguments.host} --port {arguments.port}: {first_line(error)}: choose others"
        ) from error
    deadline = time.monotonic() + START_SECONDS
    while True:
        found = serve.status().applications[APPLICATION]
        if found.status == "RUNNING":
            return
        if told.is_set():
            raise told.ended(" before the replicas were up")
        if found.status == "DEPLOY_FAILED" or time.monotonic() > deadline:
            raise Mistake(f"Ray Serve has not started the replicas: {_cause(found.message)}")
        told.wait(GLANCE_SECONDS / 5)


def _cause(message: str) -> str:
    """The line of an account with a traceback that says most."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in lines if "Mistake: " in line), "; ".join(lines[-2:]))


def _list_until_told(
    board: Any, discovery: ServiceDiscovery, progress: Progress, told: Told
) -> None:
    here = ray.util.get_node_ip_address()
    targets = ReachableTargets(discovery, progress, here, "--host")
    while not told.wait(GLANCE_SECONDS):
        try:
            pulses = ray.get(board.read.remote(), timeout=GLANCE_SECONDS)
        except (ray.exceptions.RayError, TimeoutError):  # it does not answer, now
            continue
        discovery.keep(set(pulses))
        for number, pulse in pulses.items():
            targets.set(number, pulse.metrics, pulse.node)
