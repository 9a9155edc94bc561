"""Which cluster is meant: by flags, by variables, by default; and whether it answers."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cluster.jobs.job_api import (
    DEFAULT_ADDRESS,
    JobCluster,
    ask_for_session,
    connect,
    find_dashboard,
    interpreter,
    is_here,
)
from cluster.workers.options import ClusterAddress, existing_address
from cluster.workers.session import ray_session
from trainer.base.mistake import Mistake

SESSION = "session_2026-01-02_03-04-05_678901_2345"
ONE, OTHER = "http://one:8265", "http://other:8265"


@contextmanager
def answering(pages: dict[str, tuple[int, str]], token: str | None = None) -> Iterator[str]:
    """A web server; its address. `pages`: status and text by path, for those who show the token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = pages.get(self.path, (404, "no such page"))
            if token is not None and self.headers["Authorization"] != f"Bearer {token}":
                status, text = 401, "Unauthorized"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def version(session: str = SESSION) -> dict[str, tuple[int, str]]:
    told = {"ray_version": "2.60.0", "session_name": session}
    return {"/api/version": (200, json.dumps(told))}


class TestDashboards:
    def test_the_flag_counts_before_variables_before_the_default(self) -> None:
        both = {"RAY_ADDRESS": ONE, "RAY_API_SERVER_ADDRESS": OTHER}
        assert find_dashboard("http://flag:1/", both).address == "http://flag:1"
        assert find_dashboard(None, both).address == OTHER
        assert str(find_dashboard(None, {"RAY_ADDRESS": ONE})) == f"{ONE} (RAY_ADDRESS)"
        assert find_dashboard(None, {}).address == DEFAULT_ADDRESS
        assert find_dashboard(None, {"RAY_ADDRESS": ""}).address == DEFAULT_ADDRESS

    @pytest.mark.parametrize(
        "text", ["auto", "127.0.0.1:8265", "ray://h:10001", "http://", "http://h:99999", "http://["]
    )
    def test_what_is_no_dashboard_is_named_with_its_origin(self, text: str) -> None:
        for flag, name in ((text, "--address"), (None, "RAY_ADDRESS")):
            with pytest.raises(Mistake, match="http://HEAD:8265") as raised:
                find_dashboard(flag, {"RAY_ADDRESS": text})
            assert str(raised.value).startswith(f"{name} {text}: ")

    @pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
    @pytest.mark.parametrize("text", [OTHER, "192.0.2.9:6379", "auto"])
    def test_variables_never_lead_to_another_cluster_than_the_flag(
        self, variable: str, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable, text)
        with answering(version()) as address:
            cluster = connect(address)
        assert cluster.client._address == cluster.address == address
        assert cluster.session == SESSION
        assert os.environ[variable] == text

    @pytest.mark.parametrize(
        ("pages", "found"),
        [
            ({}, "no dashboard of Ray's"),
            ({"/api/version": (200, "<html>")}, "no dashboard of Ray's"),
            ({"/api/version": (200, "[]")}, "no dashboard of Ray's"),
            ({"/api/version": (500, "oh")}, "no dashboard of Ray's"),
            (None, "nothing answers"),
        ],
    )
    def test_who_does_not_answer_as_a_dashboard_is_one_line(
        self, pages: dict[str, tuple[int, str]] | None, found: str
    ) -> None:
        with answering(pages or {}) as address:
            pass
        if pages is None:
            self.refuses(address, found)
        else:
            with answering(pages) as address:
                self.refuses(address, found)

    def refuses(self, address: str, found: str) -> None:
        with pytest.raises(Mistake, match=found) as raised:
            connect(address)
        assert address in str(raised.value) and "\n" not in str(raised.value)

    def test_a_token_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with (
            answering({"/api/version": (401, "Unauthorized: a token is missing")}) as address,
            pytest.raises(Mistake, match="RAY_AUTH_MODE=token"),
        ):
            connect(address)

    def test_a_cluster_with_a_token_tells_whoever_shows_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without the session's name no job would run by this Python on this machine."""
        with answering(version(), token="ab") as address:
            dashboard = find_dashboard(address, {})
            assert ask_for_session(dashboard) == ""
            headers = {"Authorization": "Bearer ab"}
            monkeypatch.setattr("cluster.jobs.job_api.token_headers", lambda: headers)
            assert ask_for_session(dashboard) == SESSION


class TestWhere:
    """127.0.0.1 may be a tunnel: the head's own process tells where it is."""

    def processes(self, folder: Path, *command_lines: str) -> Path:
        for pid, line in enumerate(command_lines, 100):
            (folder / str(pid)).mkdir(parents=True)
            (folder / str(pid) / "cmdline").write_bytes(line.replace(" ", "\0").encode())
        (folder / "self").mkdir(exist_ok=True)
        return folder

    def test_the_head_of_the_session_is_looked_for(self, tmp_path: Path) -> None:
        head = f"/ray/gcs_server --log_dir=/tmp/ray/{SESSION}/logs --port=6379"
        node = f"/ray/raylet --raylet_socket_name=/tmp/ray/{SESSION}/sockets/raylet"
        assert is_here(SESSION, self.processes(tmp_path / "head", "bash", head, node))
        assert not is_here(SESSION, self.processes(tmp_path / "node", "bash", node))
        other = head.replace(SESSION, SESSION + "1").replace("_2345", "_9")
        assert not is_here(SESSION, self.processes(tmp_path / "other", other))
        assert not is_here("", self.processes(tmp_path / "unknown", head))

    def test_a_job_has_this_python_on_this_machine_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cluster.jobs.job_api.is_here", lambda session: session == SESSION)
        client = None
        here = JobCluster("http://127.0.0.1:8265", client, SESSION)  # type: ignore[arg-type]
        tunnel = JobCluster("http://127.0.0.1:8265", client, "another")  # type: ignore[arg-type]
        assert interpreter(here) == sys.executable
        assert interpreter(tunnel) == "python"


class TestClusters:
    def test_the_flag_counts_before_the_variable(self) -> None:
        variable = {"RAY_ADDRESS": "b:6379"}
        assert existing_address("a:6379", variable) == ClusterAddress("a:6379", "--address")
        assert existing_address(None, variable) == ClusterAddress("b:6379", "RAY_ADDRESS")
        assert existing_address("local", variable) is None
        assert existing_address(None, {"RAY_ADDRESS": "local"}) is None
        assert existing_address(None, {}) is None

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("auto", None),
            ("head:6379", ("head", 6379)),
            ("ray://head:10001", ("head", 10001)),
            ("[::1]:6379", ("::1", 6379)),
        ],
    )
    def test_forms_of_an_address(self, text: str, expected: tuple[str, int] | None) -> None:
        assert ClusterAddress(text, "--address").host_and_port == expected

    @pytest.mark.parametrize("text", ["head", "head:0", "head:99999", "h e:1", ":6379", "h:x"])
    def test_what_is_no_address_is_one_line(self, text: str) -> None:
        with pytest.raises(Mistake, match=r"RAY_ADDRESS .*HOST:6379"):
            ClusterAddress(text, "RAY_ADDRESS")

    def test_a_dashboard_is_no_place_to_train_from(self) -> None:
        with pytest.raises(Mistake, match=r"RAY_ADDRESS http://h:8265: .*tandem submit"):
            existing_address(None, {"RAY_ADDRESS": "http://h:8265"})

    @pytest.mark.parametrize("named_by", ["--address", "RAY_ADDRESS"])
    def test_a_dead_cluster_is_told_at_once_with_what_named_it(
        self, named_by: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ray itself tries twenty times, for ten minutes and more."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            dead = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", dead if named_by == "RAY_ADDRESS" else "192.0.2.9:1")
        started = time.monotonic()
        with (
            pytest.raises(Mistake, match=f"no Ray cluster answers at {named_by} {dead}"),
            ray_session(dead if named_by == "--address" else None),
        ):
            pass
        assert time.monotonic() - started < 60

    @pytest.mark.parametrize("text", ["nope.invalid:1", "x" * 300 + ":1"])
    def test_a_name_that_is_none_is_one_line(self, text: str) -> None:
        with pytest.raises(Mistake, match="no Ray cluster answers at --address"), ray_session(text):
            pass

    def test_auto_looks_on_this_machine_whatever_the_variable_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str | None] = []

        def none_here() -> str:
            seen.append(os.environ.get("RAY_ADDRESS"))
            raise ConnectionError("Could not find any running Ray instance")

        monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
        monkeypatch.setattr("cluster.workers.session.running_cluster", none_here)
        with pytest.raises(Mistake, match="answers at --address auto"), ray_session("auto"):
            pass
        assert seen == [None]
        assert os.environ["RAY_ADDRESS"] == "192.0.2.9:6379"
