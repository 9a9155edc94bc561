"""`tandem status` without a word: the newest runs below the folder, or what to give."""

import os
from pathlib import Path

import pytest

from cluster import cli
from tests.test_report_out import run  # noqa: F401  a run's folder
from trainer.live import below

VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@pytest.fixture(autouse=True)
def nobody_names_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_newest_runs_are_shown(
    run: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = Path(run)
    for number in range(3):
        folder = first.parent / f"later {number}"
        folder.mkdir()
        for name in ("config.json", "metrics.jsonl"):
            (folder / name).write_bytes((first / name).read_bytes())
        os.utime(folder / "config.json", (2e9 + number, 2e9 + number))
    monkeypatch.chdir(first.parent.parent)
    monkeypatch.setattr(below, "MOST_SHOWN", 2)
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("runs/later 2") < shown.index("runs/later 1") and "later 0" not in shown
    assert "and 2 more" in shown and "tandem status --address http://127.0.0.1:8265" in shown


def test_where_there_is_none_it_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status"]) == 1
    assert "give one (tandem status RUN), or a cluster" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*VARIABLES, "--address"])
def test_a_cluster_that_is_named_is_asked(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    address = "http://127.0.0.1:9"
    given = ["--address", address] if name == "--address" else []
    if not given:
        monkeypatch.setenv(name, address)
    assert cli.main(["status", *given]) == 1
    assert f"no Ray cluster takes jobs at {address} ({name})" in capsys.readouterr().err
