"""The small HTTP server: slow clients, strange hosts, HEAD, and pages that cannot be made."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trainer.base.mistake import Mistake
from trainer.observe import http as small_http
from trainer.observe.http import Page, SmallServer


def broken() -> bytes:
    raise ValueError("metrics.jsonl: line 3\nis torn")


PAGES = {
    "/": Page("text/plain", lambda: b"hello"),
    "/large": Page("text/plain", lambda: b"x" * (64 << 20)),
    "/broken": Page("application/json", broken),
}


@contextmanager
def server(host: str = "127.0.0.1") -> Iterator[int]:
    served = SmallServer(host, 0, PAGES, "test", "--host")
    try:
        yield served.port
    finally:
        served.close()


def ask(
    port: int, path: str = "/", host: str | None = None, method: str = "GET"
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=host is not None)
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


@pytest.mark.parametrize(
    "host", ["u÷\x85ê\x80", "ü" * 70, "\u202egpj", "ü..de", "\udc80", "a" * 70, "..", "[red]", "-x"]
)
def test_a_name_that_is_none_is_no_place_to_listen_on(host: str) -> None:
    """The socket's own error for a name outside of IDNA, a TypeError, was called our bug."""
    with pytest.raises(Mistake, match="--host: cannot listen on"), server(host):
        pass


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:80", "localhost:8090", "LOCALHOST", "[::1]:9", "127.9.9.9"]
)
def test_names_of_this_machine_are_answered(host: str) -> None:
    with server() as port:
        assert ask(port, host=host)[:2] == (200, b"hello")


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8090", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("10.0.0.1", "a b", "[::1", "127.0.0.1@evil.example", "localhost."),
    ],
)
def test_other_names_are_refused_where_only_this_machine_is_served(host: str) -> None:
    """A name of somebody else's that leads to 127.0.0.1 would read the page in a browser here."""
    with server() as port:
        status, body, _ = ask(port, host=host)
        assert status == 403 and b"hello" not in body and b"--host" in body
    with server("0.0.0.0") as port:
        assert ask(port, host="some.machine:80")[0] == 200


def test_a_client_without_a_host_is_no_browser() -> None:
    with server() as port, socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").read().endswith(b"hello")


def test_head_is_get_without_the_body() -> None:
    with server() as port:
        status, body, headers = ask(port, method="HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", "5")
        assert ask(port, "/none", method="HEAD")[0] == 404
        assert ask(port, method="POST")[0] == 501


def test_a_page_that_cannot_be_made_says_why() -> None:
    with server() as port:
        status, body, headers = ask(port, "/broken")
        assert (status, headers["Content-Type"]) == (500, "application/json")
        assert json.loads(body) == {"error": "ValueError: metrics.jsonl: line 3"}
        assert ask(port)[0] == 200


@pytest.mark.parametrize("slow", ["in asking", "in reading"])
def test_a_request_has_a_deadline(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte came within the time-out of a read, so a client could hold a thread for ever."""
    monkeypatch.setattr(small_http, "REQUEST_SECONDS", 0.3)
    with server() as port, socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        if slow == "in reading":
            client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        received, cut = 0, False
        for _ in range(300):
            try:
                if slow == "in asking":
                    client.sendall(b"G")
                else:
                    got = client.recv(1 << 20)
                    received += len(got)
                    if not got:
                        break
            except OSError:
                cut = True
                break
            time.sleep(0.1)
        assert cut or (slow == "in reading" and received < 64 << 20)
        assert ask(port)[0] == 200
