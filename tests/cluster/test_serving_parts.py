"""Parts of `tandem serve --address` that need no cluster."""

import importlib
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.serving import board as board_module
from cluster.serving.board import Board, Pulse
from cluster.serving.nodes import look
from trainer.base.mistake import Mistake
from trainer.serve.serve_arguments import ServeArguments


def pulse(name: str) -> Pulse:
    return Pulse(name, f"127.0.0.1:{name}", "127.0.0.1")


def test_a_replica_keeps_its_number_and_a_new_one_takes_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now)
    board = Board()
    for name in ("a", "b", "a", "c"):
        board.put(pulse(name))
    assert board.read() == {0: pulse("a"), 1: pulse("b"), 2: pulse("c")}
    now = 20.0
    for name in ("a", "c"):
        board.put(pulse(name))
    now = 40.0
    assert board.read() == {0: pulse("a"), 2: pulse("c")}
    board.put(pulse("d"))
    assert board.read() == {0: pulse("a"), 1: pulse("d"), 2: pulse("c")}


def test_a_node_says_what_it_lacks_in_one_line(tmp_path: Path) -> None:
    said = look(str(tmp_path / "nothing"))
    assert said is not None and "nothing" in said and "\n" not in said


def test_an_install_without_ray_serve_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'grpc_reflection'")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert main(["serve", "B", "--address", "auto"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: Ray Serve is not installed (No module named 'grpc_reflection')")
    assert "pip install 'ray[serve]==" in said


def test_an_application_of_a_configuration_is_checked() -> None:
    replica = pytest.importorskip("cluster.serving.replica", reason="needs ray[serve]")
    built = replica.build({"bundle": "/b", "replicas": 3, "waiting": 100, "batch": 10})
    deployment = built._bound_deployment
    assert deployment.num_replicas == 3 and deployment.max_ongoing_requests == 120
    assert ServeArguments(**deployment.init_args[0]).bundle == "/b"
    with pytest.raises(Mistake, match="args: no bundle"):
        replica.build({})
    with pytest.raises(Mistake, match="args: 'bundel': did you mean 'bundle'"):
        replica.build({"bundel": "/b"})
