"""A small HTTP server for a few generated pages, which no client can make a burden.

Training shares its process with this server, so each of these costs little: slow, broken and
surplus connections are cut; connections are taken at most CONNECTIONS_PER_SECOND a second (the
rest wait in the kernel's queue); a page is generated at most once in PAGE_SECONDS.

A server for this machine alone answers to this machine's names alone: a page elsewhere whose name
leads to 127.0.0.1 would otherwise be read by whoever opens it in a browser here.
"""

from __future__ import annotations

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import urlsplit

from trainer.base.address import LAST_PORT, is_loopback, with_port
from trainer.base.mistake import Mistake

READ_SECONDS = 5.0
"""Without a byte of a request."""
REQUEST_SECONDS = 20.0
"""From its connection to the last byte of the answer."""
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
        guest = f"only this machine's own names are answered; {flags} let others in"
        handler = _handler_of(self._pages, guest if is_loopback(host) else None)
        try:
            host.encode("idna")  # a name that is none; the socket would say so by a TypeError
            self._http = kind((host, port), handler)
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

    @staticmethod
    def at_free_port(
        host: str, first: int, tried: int, pages: Mapping[str, Page], name: str, flags: str
    ) -> SmallServer:
        """At the first free one of so many ports from `first` on; 0: at any free one.

        Raises:
            PortTakenError: where all of them are in use.
            Mistake: as above.
        """
        ports = range(first, min(first + tried, LAST_PORT + 1) if first else 1)
        for port in ports:
            with suppress(PortTakenError):
                return SmallServer(host, port, pages, name, flags)
        said = f"all of {ports[0]}..{ports[-1]} are taken on {host}"
        raise PortTakenError(errno.EADDRINUSE, said)

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
        self._since: dict[socket.socket, float] = {}
        """Connections under way, and when they began."""
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """HTTPServer's own looks up the name of the address, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        self._hold_back()
        if self._free.acquire(blocking=False):
            self._since[request] = time.monotonic()
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._since.pop(request, None)
            self._free.release()

    def service_actions(self) -> None:
        """Several times a second: cut the connections that have had their time."""
        now = time.monotonic()
        for request, since in list(self._since.items()):
            if now - since > REQUEST_SECONDS:
                with suppress(OSError):  # gone meanwhile
                    request.shutdown(socket.SHUT_RDWR)

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


def _is_own_name(host: str) -> bool:
    """Whether a Host header, `name` or `name:port`, is a name of this machine's for itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) and not {"@", " "} & set(host)


def _handler_of(
    pages: Mapping[str, _Cached], told_to_guests: str | None
) -> type[BaseHTTPRequestHandler]:
    """Answers GET and HEAD. `told_to_guests`: refuse other names than this machine's, saying it."""

    class Handler(BaseHTTPRequestHandler):
        timeout = READ_SECONDS

        def do_GET(self) -> None:
            path, host = self.path.partition("?")[0], self.headers.get("Host")
            if told_to_guests is not None and host is not None and not _is_own_name(host):
                self.send_error(403, explain=told_to_guests)
            elif path not in pages:
                self.send_error(404)
            else:
                self._answer(pages[path])

        do_HEAD = do_GET

        def _answer(self, page: _Cached) -> None:
            try:
                status, kind, body = 200, page.content_type, page.body()
            except Exception as error:  # noqa: BLE001 - the client is told
                told = f"{type(error).__name__}: {error}".partition("\n")[0]
                status, kind = 500, "application/json"
                body = json.dumps({"error": told}).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
                page.count()

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not news."""

    return Handler
