"""Between an S3 client and its server: every so many requests one is reset, throttled, or torn.

Or listings lag: what was put within the last `lag` seconds is in none.
"""

import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import unquote

FAULTS = ("reset before", "slow down", "server error", "torn", "reset after")
"""One after the other. `reset after`: it was done, and the answer is lost."""
BUSY = {
    "slow down": (503, b"<Error><Code>SlowDown</Code><Message>reduce</Message></Error>"),
    "server error": (500, b"<Error><Code>InternalError</Code><Message>oops</Message></Error>"),
}
ENTRIES = rb"<Contents>.*?</Contents>|<CommonPrefixes>.*?</CommonPrefixes>"
OF_A_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class FaultyServer(ThreadingHTTPServer):
    """Passes requests on to a port of this machine, all but some."""

    daemon_threads = True

    def __init__(self, port: int, every: int, lag: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port, self.every, self.lag = port, every, lag
        self.put_at: dict[str, float] = {}
        self.numbers, self.met = count(1), Counter[str]()

    def next_fault(self) -> str:
        """What befalls the request that came now; "" mostly."""
        number = next(self.numbers)
        fault = (
            ""
            if not self.every or number % self.every
            else FAULTS[number // self.every % len(FAULTS)]
        )
        self.met[fault] += 1
        return fault

    def listed_late(self, command: str, path: str, found: bytes) -> bytes:
        """An answer without what is too new to be listed, where it is a listing."""
        place, _, query = path.partition("?")
        now = time.monotonic()
        if command == "PUT":
            self.put_at[unquote(place).partition("/")[2].partition("/")[2]] = now
        if command != "GET" or "list-type" not in query:
            return found
        new = {key for key, at in self.put_at.items() if now - at < self.lag}
        old = self.put_at.keys() - new

        def kept(entry: re.Match[bytes]) -> bytes:
            key = re.search(rb"<(?:Key|Prefix)>(.*?)</", entry[0])
            name = unquote(key[1].decode()) if key else ""
            hidden = name in new or (
                name.endswith("/")
                and any(each.startswith(name) for each in new)
                and not any(each.startswith(name) for each in old)
            )
            self.met["hidden"] += hidden
            return b"" if hidden else entry[0]

        return re.sub(ENTRIES, kept, found, flags=re.DOTALL)


class Handler(BaseHTTPRequestHandler):
    """One request after the other of a connection."""

    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        fault, body = self.server.next_fault(), self._body()
        if fault in BUSY:
            status, words = BUSY[fault]
            self._send(status, {"Content-Type": "application/xml"}, words)
        elif fault == "reset before":
            self._reset()
        else:
            status, headers, found = self._forward(body)
            if self.server.lag:
                found = self.server.listed_late(self.command, self.path, found)
                headers |= {"Content-Length": str(len(found))} if self.command == "GET" else {}
            if fault == "reset after":
                self._reset()
            else:
                self._send(status, headers, found, torn=fault == "torn")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in OF_A_HOP}
        server.request(self.command, self.path, body, headers)
        found = server.getresponse()
        whole = found.read()
        kept = {k: v for k, v in found.getheaders() if k.lower() not in OF_A_HOP}
        if self.command == "HEAD":
            kept["Content-Length"] = found.getheader("Content-Length") or "0"
        server.close()
        return found.status, kept, whole

    def _send(self, status: int, headers: dict[str, str], body: bytes, torn: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if torn else body)
        if torn:
            self._reset()

    def _reset(self) -> None:
        """End the connection by RST."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True


@contextmanager
def faulty_server(port: int, every: int, lag: float = 0) -> Iterator[FaultyServer]:
    """In front of `port`; its `every` may be changed while it serves.

    Args:
        every: so many requests one fails; 0: none.
    """
    server = FaultyServer(port, every, lag)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def faulty(port: int, every: int, lag: float = 0) -> Iterator[tuple[int, Counter[str]]]:
    """A port that leads to `port`, and how often each fault was met so far."""
    with faulty_server(port, every, lag) as server:
        yield server.server_address[1], server.met
