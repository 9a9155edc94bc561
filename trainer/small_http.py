"""A small HTTP server for a few generated pages, which no client can make a burden.

Training shares its process with this server, so each of these costs little: slow, broken and
surplus connections are cut; connections are taken at most CONNECTIONS_PER_SECOND a second (the
rest wait in the kernel's queue); a page is generated at most once in PAGE_SECONDS.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

from trainer.address import with_port
from trainer.mistake import Mistake

REQUEST_TIMEOUT_SECONDS = 5.0
MAX_CONNECTIONS = 16
CONNECTIONS_PER_SECOND = 50.0
PAGE_SECONDS = 0.2


@dataclass(frozen=True)
class Page:
    """What a path answers with."""

    content_type: str
    render: Callable[[], bytes]


class PortTakenError(OSError):
    """Another process listens on the port."""


class SmallServer:
    """Serves `pages` by path from a thread of its own, until `close`.

    Port 0 takes any free one. A host with a colon is an IPv6 address; "::" takes IPv4 clients too.

    Args:
        flags: of the user's that host and port come from.

    Raises:
        PortTakenError: where the port is in use.
        Mistake: where host and port are nothing to listen on.
    """

    def __init__(
        self, host: str, port: int, pages: Mapping[str, Page], name: str, flags: str
    ) -> None:
        self._pages = {path: _Cached(page) for path, page in pages.items()}
        kind = _LimitedHTTPServerV6 if ":" in host else _LimitedHTTPServer
        try:
            self._http = kind((host, port), _handler_of(self._pages))
        except (OSError, OverflowError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise PortTakenError(errno.EADDRINUSE, f"port {port} is taken") from error
            why = error.strerror if isinstance(error, OSError) else str(error)
            where = with_port(host, port) if port else host
            raise Mistake(
                f"{flags}: cannot listen on {where} ({why}); give an address of this machine "
                "(127.0.0.1: for itself alone, 0.0.0.0: all), and a port that is free"
            ) from error
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.1,), name=name, daemon=True
        )
        self._thread.start()

    def served(self, path: str) -> Served:
        """How often, and when, a path was asked for."""
        return self._pages[path].served

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@dataclass(frozen=True)
class Served:
    """Whole answers given: their number, the time of the last and the seconds before it."""

    count: int = 0
    last: float = float("-inf")
    """time.monotonic() of the last answer."""
    interval_seconds: float = float("inf")

    def once_more(self, now: float) -> Served:
        return Served(self.count + 1, now, now - self.last)


class _Cached:
    """A page, generated anew once its last copy is PAGE_SECONDS old."""

    def __init__(self, page: Page) -> None:
        self.content_type = page.content_type
        self.served = Served()
        self._render = page.render
        self._body = b""
        self._made = float("-inf")
        self._lock = threading.Lock()

    def body(self) -> bytes:
        with self._lock:
            if time.monotonic() - self._made > PAGE_SECONDS:
                self._body = self._render()
                self._made = time.monotonic()
            return self._body

    def count(self) -> None:
        with self._lock:
            self.served = self.served.once_more(time.monotonic())


class _LimitedHTTPServer(ThreadingHTTPServer):
    """At most MAX_CONNECTIONS at a time: further ones are closed unanswered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._allowance = MAX_CONNECTIONS * 1.0
        self._last = time.monotonic()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """HTTPServer's own looks up the name of the address, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        self._hold_back()
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        """A client that broke off is not worth a traceback in the run's output."""

    def _hold_back(self) -> None:
        """Take connections no faster than allowed: the accepting thread sleeps meanwhile."""
        now = time.monotonic()
        gained = (now - self._last) * CONNECTIONS_PER_SECOND
        self._allowance = min(self._allowance + gained, MAX_CONNECTIONS) - 1
        self._last = now
        if self._allowance < 0:
            time.sleep(-self._allowance / CONNECTIONS_PER_SECOND)


class _LimitedHTTPServerV6(_LimitedHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _handler_of(pages: Mapping[str, _Cached]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_SECONDS

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path not in pages:
                self.send_error(404)
                return
            body = pages[path].body()
            self.send_response(200)
            self.send_header("Content-Type", pages[path].content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)
            pages[path].count()

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not news."""

    return Handler
