"""A server in a thread of this process, and a client that speaks plain HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from trainer.serve.serve_arguments import ServeArguments
from trainer.serve.serving import configuration
from trainer.serve.shelf import Shelf


@contextmanager
def running(place: Path, **settings: Any) -> Iterator[tuple[int, Shelf]]:
    """The port of a server of a bundle, and its shelf."""
    arguments = ServeArguments(str(place), **settings)
    shelf = Shelf(arguments.bundle)
    server = uvicorn.Server(configuration(arguments, shelf))
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            wait_until_up(listening.getsockname()[1])
            yield listening.getsockname()[1], shelf
        finally:
            server.should_exit = True
            thread.join(timeout=60)
            assert not thread.is_alive()


def wait_until_up(port: int) -> None:
    assert asked(port, "GET", "/healthz", seconds=60)[0] == 200


def asked(
    port: int, method: str, path: str, body: Any = None, seconds: float = 30
) -> tuple[int, Any]:
    """Status and answer of a request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        given = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, given, {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        is_json = "json" in (response.getheader("content-type") or "")
        return response.status, json.loads(text) if is_json else text.decode()
    finally:
        connection.close()
