"""Servers that are no cluster: each answers everything in one wrong way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {
    "html": (200, b"<html><h1>It works!</h1></html>"),
    "json": (200, b'{"version": "x", "ray_version": [1], "[red]": {"a": null}}'),
    "empty": (200, b""),
    "error": (500, b"\x1b[2J Traceback (most recent call last):\n  oops\n"),
    "cut": (200, None),
}


def _handler(status: int, body: bytes | None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(1000 if body is None else len(body)))
            self.end_headers()
            self.wfile.write(b"{" if body is None else body)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


@contextmanager
def hostile_servers() -> Iterator[dict[str, str]]:
    """Addresses by the names of ANSWERS."""
    with ExitStack() as closing:
        addresses = {}
        for name, (status, body) in ANSWERS.items():
            server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(status, body))
            closing.callback(server.server_close)
            closing.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            addresses[name] = f"http://127.0.0.1:{server.server_address[1]}"
        yield addresses
