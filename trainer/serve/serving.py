"""`tandem serve BUNDLE`: the app under uvicorn, until it is told to end."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import suppress

import uvicorn

from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.serve.app import build_app
from trainer.serve.bounds import BoundedProtocol
from trainer.serve.serve_arguments import ServeArguments
from trainer.serve.server_metrics import ServerMetrics
from trainer.serve.shelf import Shelf

GRACE_SECONDS = 10
HEAD_BYTES = 1 << 16
BACKLOG = 2048


def serve(arguments: ServeArguments) -> None:
    """Answer until SIGTERM or Ctrl-C: then what is asked already is answered still.

    Raises:
        Mistake: where the bundle is none, or the address cannot be listened on.
    """
    shelf = Shelf(arguments.bundle, arguments.verify)
    listening = _listen(arguments.host, arguments.port)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    said = shelf.current.manifest
    say(f"{said.items:,} items of {said.run}, step {said.step:,}: http://{shown}:{port}/docs",
        file=sys.stderr)  # fmt: skip
    server = uvicorn.Server(configuration(arguments, shelf))
    with listening, suppress(KeyboardInterrupt):  # which uvicorn raises again at its end
        asyncio.run(_run(server, shelf, listening))


def configuration(arguments: ServeArguments, shelf: Shelf) -> uvicorn.Config:
    """How uvicorn runs the app."""
    protocol = type(
        "Protocol", (BoundedProtocol,), {"client_seconds": float(arguments.client_seconds)}
    )
    return uvicorn.Config(
        build_app(arguments, shelf, ServerMetrics(shelf)),
        http=protocol,
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        limit_concurrency=arguments.connections,
        timeout_keep_alive=arguments.client_seconds,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=HEAD_BYTES,
        server_header=False,
    )


async def _run(server: uvicorn.Server, shelf: Shelf, listening: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, shelf.look))
    await server.serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)  # who connects once the address is told waits for the app
    except (OSError, UnicodeError) as error:
        raise Mistake(
            f"--host {host} --port {port} cannot be listened on ({error}): choose others, "
            "or port 0 for any free one"
        ) from error
    return listening
