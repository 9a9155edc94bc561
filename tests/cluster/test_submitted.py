"""Jobs noted here: damaged notes and a home that cannot be written are no trouble of the job's."""

from pathlib import Path

import pytest

from cluster.jobs import submitted
from cluster.jobs.submitted import Submitted, jobs_file, remember, remembered

HEAD = "http://head:8265"
TORN = b'{"job": "j9", "addr\n[]\n\x00\x00\n\xff\n{"job": 3, "address": "x"}\n{"new": 1}\n'
TORN += b"[" * 9999 + b"\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def job(name: str) -> Submitted:
    return Submitted(name, HEAD, ("train", "demo"), "/shared/run")


def test_notes_that_are_damaged_are_passed_over() -> None:
    remember(job("j1"))
    with jobs_file().open("ab") as file:
        file.write(TORN)
    assert [each.job for each in remembered(HEAD)] == ["j1"]
    remember(job("j2"))
    assert [each.job for each in remembered(HEAD + "/")] == ["j1", "j2"]
    assert remembered("http://other:8265") == []


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitted, "MOST_JOBS", 2)
    for name in ("j1", "j2", "j3"):
        remember(job(name))
    assert [each.job for each in remembered(HEAD)] == ["j2", "j3"]


def test_a_home_that_cannot_be_written_is_said(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.write_text("a file")
    remember(job("j1"))
    assert capsys.readouterr().err.startswith("job j1 is not noted in ")
    assert remembered(HEAD) == []
