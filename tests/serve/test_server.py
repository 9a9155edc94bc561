"""The server over real connections: answers, mistakes, bounds, and the change to another bundle."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.bundle.made import make_bundle
from tests.serve.load import HEAD, Told, change, load
from tests.serve.running import asked, running
from trainer.base.mistake import Mistake
from trainer.bundle.answers import recommend, similar
from trainer.bundle.asked import Ask, AskSimilar, Filters
from trainer.bundle.opened_bundle import Bundle
from trainer.serve.serve_arguments import ServeArguments
from trainer.serve.shelf import Shelf

CLIENT_SECONDS = 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("serve") / "B")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[tuple[int, Shelf]]:
    with running(place, body_bytes=20_000, client_seconds=CLIENT_SECONDS) as found:
        yield found


@pytest.fixture
def port(server: tuple[int, Shelf]) -> int:
    return server[0]


@pytest.mark.parametrize(
    ("body", "ask"),
    [
        ({"user": "u3"}, Ask("u3")),
        (
            {"user": "u3", "k": 3, "exclude": ["i1"]},
            Ask("u3", k=3, filters=Filters(exclude=("i1",))),
        ),
        (
            {"user": "u3", "where": "price < 40", "only": [f"i{n}" for n in range(90)]},
            Ask("u3", filters=Filters("price < 40", tuple(f"i{n}" for n in range(90)))),
        ),
        ({"user": "u3", "max_per": {"brand": 1}}, Ask("u3", filters=Filters(max_per={"brand": 1}))),
        ({"user": "u39"}, Ask("u39")),
        ({"user": "u3", "where": "price < 0"}, Ask("u3", filters=Filters("price < 0"))),
    ],
)
def test_answers_are_those_of_the_bundle(
    port: int, place: Path, body: dict[str, Any], ask: Ask
) -> None:
    status, found = asked(port, "POST", "/recommend", body)
    wanted = recommend(Bundle(place), ask)
    assert status == 200 and found["note"] == wanted.note
    assert [(e["item"], e["title"]) for e in found["items"]] == [
        (item.raw_id, item.title) for item in wanted.items
    ]
    assert [each["score"] for each in found["items"]] == wanted.scores
    assert len(found["bundle"]) == 12


def test_similar_items(port: int, place: Path) -> None:
    status, found = asked(port, "POST", "/similar", {"item": "i60", "k": 4})
    wanted = similar(Bundle(place), AskSimilar("i60", 4))
    assert status == 200
    assert [each["item"] for each in found["items"]] == [item.raw_id for item in wanted.items]
    assert asked(port, "POST", "/similar", {"title": "item 60", "k": 4}) == (200, found)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/recommend", {"user": "nobody"}, 400, "no user 'nobody'"),
        ("/recommend", {}, 400, "say who asks"),
        ("/recommend", {"user": "u1", "where": "x IN (SELECT 1)"}, 400, "subquery"),
        ("/recommend", {"user": "u1", "where": "read_text('/etc/passwd') = ''"}, 400, "read_text"),
        ("/recommend", {"user": "u1", "context": {"hour": 3}}, 400, "no context"),
        ("/recommend", {"user": "u1", "max_per": {"x": 1}}, 400, "max_per 'x'"),
        ("/recommend", {"user": True}, 422, "user"),
        ("/recommend", {"user": None, "k": "ten"}, 422, "k: "),
        ("/recommend", {"user": "u1", "k": 0}, 422, "k: "),
        ("/recommend", {"user": "u1", "k": 10**9}, 422, "k: "),
        ("/recommend", {"user": "u1", "max_per": {"brand": 0}}, 422, "max_per.brand"),
        ("/recommend", {"usr": "u1"}, 422, "usr: no field of this request: did you mean 'user'?"),
        ("/similar", {"itemid": 3, "item": "i1"}, 422, "itemid: no field of this request: did you"),
        ("/recommend", {"user": "u1", "exclude": "i1"}, 422, "exclude: "),
        ("/recommend", [], 422, "dictionary"),
        ("/recommend", b"{", 422, "JSON"),
        ("/recommend", b"\xff\xfe", 422, ""),
        ("/recommend", b"", 422, ""),
        ("/recommend", b'{"user": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400, "parsing the body"),
        ("/recommend", b'{"user": "u1", "k": ' + b"9" * 9000 + b"}", 400, "parsing the body"),
        ("/recommend", b'{"user": "\\ud800"}', 400, ""),
        ("/recommend", {"user": "u1", "where": "a" * 19_000}, 400, "characters"),
        ("/recommend", {"user": "u" * 30_000}, 413, "more than 20,000 bytes"),
        ("/similar", {"item": "i9999"}, 400, "no item 'i9999'"),
        ("/similar", {}, 422, "say which item: its id as item, or its title as title"),
        ("/similar", {"item": "i1", "title": "Item 1"}, 422, "say which item"),
        ("/similar", {"title": "no such thing"}, 400, "no item has such a title"),
        ("/similar", {"title": " "}, 400, "empty, or no text"),
        ("/similar", b'{"title": "\\ud800"}', 400, "no text that can be printed"),
        ("/similar", {"title": "item"}, 400, "500 fit: Item "),
        ("/nothing", {}, 404, "POST /nothing: Not Found. POST /recommend and /similar: see GET /d"),
    ],
)
def test_a_mistake_is_one_line(port: int, path: str, body: Any, status: int, words: str) -> None:
    found = asked(port, "POST", path, body)
    assert found[0] == status, found
    assert set(found[1]) == {"error"} and words in found[1]["error"]
    assert len(found[1]["error"]) <= 1000 and "\n" not in found[1]["error"]


def test_a_body_that_is_not_said_to_be_json_is_refused(port: int) -> None:
    """A page in somebody's browser could send such a one to this machine."""
    body = b'{"user": "u1"}'
    head = HEAD.replace(b"application/json", b"text/plain")
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head + b"Content-Length: 14\r\nConnection: close\r\n\r\n" + body)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert b" 422 " in answer and b"send content-type: application/json" in answer


def test_looks(port: int, place: Path) -> None:
    status, health = asked(port, "GET", "/healthz")
    assert status == 200 and health["status"] == "ok" and health["items"] == 500
    status, page = asked(port, "GET", "/openapi.json")
    assert status == 200 and {"/recommend", "/similar", "/healthz"} <= set(page["paths"])
    assert asked(port, "GET", "/docs")[0] == 200
    assert asked(port, "GET", "/recommend")[0] == 405
    asked(port, "POST", "/recommend", {"user": "u1"})
    status, text = asked(port, "GET", "/metrics")
    assert status == 200
    assert 'tandem_serve_requests_total{status="200"}' in text
    assert "tandem_serve_request_seconds_bucket" in text and "tandem_serve_waiting 0.0" in text


SLOW = {
    "nothing": b"",
    "half a line": b"POST /rec",
    "half the headers": b"POST /recommend HTTP/1.1\r\nHost: x\r\nConte",
    "half a body": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
    "a body without an end": b"POST /recommend HTTP/1.1\r\nHost: x\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_client_that_stops_is_not_waited_for(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(sent)
        received = b""
        with suppress(ConnectionResetError):
            while part := client.recv(4096):
                received += part
    assert received == b"" or b" 408 " in received
    assert asked(port, "POST", "/recommend", {"user": "u1"})[0] == 200


def test_a_second_request_that_stops_is_not_waited_for_either(port: int) -> None:
    whole = json.dumps({"user": "u1"}).encode()
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(whole)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head + whole)
        received = client.recv(65536)
        assert b" 200 " in received
        client.sendall(b"POST /recomm")
        with suppress(ConnectionResetError):
            while client.recv(65536):
                pass


@pytest.mark.parametrize("chunked", [True, False])
def test_a_huge_body_is_not_read(port: int, chunked: bool) -> None:
    """It is refused by its length; without one, once too much has come."""
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 99999999999"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40 if chunked else 0):
                client.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        received = b""
        with suppress(ConnectionResetError):
            while part := client.recv(4096):
                received += part
    assert b" 413 " in received or received == b""
    assert asked(port, "GET", "/healthz")[0] == 200


def until(what: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_bundle_changes_by_its_link_and_a_bad_one_does_not(tmp_path: Path) -> None:
    one = make_bundle(tmp_path / "one", step=1)
    two = make_bundle(tmp_path / "two", seed=1, step=2)
    bad = make_bundle(tmp_path / "bad", seed=2, step=3)
    (bad / "items/vectors.npy").write_bytes(b"")
    link = tmp_path / "current"
    link.symlink_to(one)
    shelf = Shelf(str(link))
    first = shelf.current
    assert not shelf.look() and shelf.current is first
    change(link, bad)
    assert not shelf.look() and shelf.current is first and shelf.failures == 1
    assert not shelf.look() and shelf.failures == 1, "told once"
    link.unlink()
    assert not shelf.look() and shelf.current is first
    link.symlink_to(two)
    assert shelf.look() and shelf.current.manifest.step == 2
    assert recommend(first, Ask("u1")) == recommend(Bundle(one), Ask("u1")), "still whole"
    with pytest.raises(Mistake, match="is no bundle"):
        Shelf(str(tmp_path / "nothing"))


def test_many_clients_bad_ones_among_them_and_a_change(tmp_path: Path) -> None:
    """Every request is answered, before, during and after the change."""
    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two", seed=1, step=2)
    link = tmp_path / "current"
    link.symlink_to(one)
    with running(link, client_seconds=CLIENT_SECONDS, body_bytes=10_000) as (port, shelf):
        told = Told((one, two))
        asyncio.run(load(port, 4, 30, 8, told))
        change(link, two)
        asyncio.run(load(port, 4, 30, 8, told))
        until(lambda: shelf.changes == 1)
        asyncio.run(load(port, 4, 30, 8, told))
        assert told.asked == 360 and len(told.digests) == 2
        assert asked(port, "GET", "/healthz")[1]["step"] == 2
        (one / "items/vectors.npy").unlink()
        assert asked(port, "POST", "/recommend", {"user": "u1"})[0] == 200


def test_sighup_looks_at_once(tmp_path: Path) -> None:
    import signal
    import subprocess
    import sys

    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two", seed=1, step=2)
    link = tmp_path / "current"
    link.symlink_to(one)
    words = [sys.executable, "-m", "cluster.cli", "serve", str(link), "--port=0"]
    child = subprocess.Popen([*words, "--look-seconds=3600"], stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        line = child.stderr.readline()
        port = int(line.rpartition(":")[2].partition("/")[0])
        until(lambda: answers(port))
        change(link, two)
        os.kill(child.pid, signal.SIGHUP)
        until(lambda: asked(port, "GET", "/healthz")[1]["step"] == 2)
        child.terminate()
        assert child.wait(timeout=60) in (0, -signal.SIGTERM, 143)
    finally:
        child.kill()
        child.wait()


def answers(port: int) -> bool:
    try:
        return asked(port, "GET", "/healthz")[0] == 200
    except OSError:
        return False


def test_too_many_that_wait_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from trainer.serve import answering, app

    gate, place = threading.Event(), make_bundle(tmp_path / "B")
    batch = answering.answer_batch

    def held(*given: Any) -> Any:
        gate.wait(60)
        return batch(*given)

    monkeypatch.setattr(app, "answer_batch", held)
    with running(place, waiting=2, batch=1) as (port, _):
        statuses: list[int] = []

        def one() -> None:
            statuses.append(asked(port, "POST", "/recommend", {"user": "u1"}, seconds=60)[0])

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: len(statuses) == 5)
        gate.set()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [200, 200, 200, 503, 503, 503, 503, 503]


def test_whoever_has_gone_is_not_answered_and_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from trainer.serve import answering, app

    gate, taken, place = threading.Event(), list[int](), make_bundle(tmp_path / "B")
    batch = answering.answer_batch

    def held(shelf: Shelf, questions: Any) -> Any:
        taken.append(len(questions))
        gate.wait(100)
        return batch(shelf, questions)

    monkeypatch.setattr(app, "answer_batch", held)
    with running(place, waiting=4, client_seconds=60, answer_seconds=100) as (port, _):

        def waiting() -> int:
            return int(asked(port, "GET", "/healthz")[1]["waiting"])

        clients = []
        for n in range(5):
            clients.append(socket.create_connection(("127.0.0.1", port), timeout=30))
            clients[-1].sendall(HEAD + b'Content-Length: 14\r\n\r\n{"user": "u1"}')
            until(lambda n=n: taken == [1] and waiting() == n)
        for client in clients:
            client.close()
        try:
            until(lambda: waiting() == 0, seconds=50)
        finally:
            gate.set()
        assert asked(port, "POST", "/recommend", {"user": "u1"})[0] == 200
    assert taken == [1, 1]


def test_one_bad_question_hinders_no_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.serve import answering

    answer = answering.answer

    def fails_with_two(bundle: Bundle, prepared: list) -> Any:
        if any(each.k == 7 for each in prepared):
            raise RuntimeError("a bug")
        return answer(bundle, prepared)

    monkeypatch.setattr(answering, "answer", fails_with_two)
    limited = Filters(max_per={"brand": 1})
    questions = [Ask("u1"), Ask("u2", k=7), Ask("nobody"), Ask("u3", filters=limited)]
    found = answering.answer_batch(Shelf(str(place)), questions)
    assert [type(each).__name__ for each in found] == ["Answer", "FailedError", "Mistake", "Answer"]
    assert len(found[3].items) == 7  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"port": 70_000}, "--port"),
        ({"batch": 0}, "--batch"),
        ({"host": ""}, "--host"),
        ({"replicas": 2}, "--replicas is of a Ray cluster"),
        ({"metrics_port": 9500}, "--metrics-port is of a Ray cluster"),
        ({"address": "auto", "port": 0}, "--port 0"),
        ({"address": ""}, "--address"),
    ],
)
def test_settings_are_checked(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        ServeArguments("B", **setting)
