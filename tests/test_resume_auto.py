"""`--resume auto`: one command line for the first start and every other one."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

import tandem
from cluster.jobs.submit import going_on
from tests.one_rank import STEPS, Notes, begun, small_data, spec_of
from trainer.base.mistake import Mistake
from trainer.command_line import TrainArguments, parse_preset
from trainer.files import signs
from trainer.files.json_files import write_json
from trainer.files.line_file import read_records
from trainer.run.lock import RunLock
from trainer.train import run_worker

FLAGS = ["demo", "--data", "d", "--out", "r"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_records(run / "metrics.jsonl")}


def started(data: str, out: Path, most: int | None = None) -> list[str]:
    """One start by the same line, up to `most` steps."""
    notes = Notes()
    run_worker(spec_of(data, out, "auto", training={"max_steps": most}), notes)
    return notes.said


def test_twenty_requeues_are_one_run(data: str, tmp_path: Path) -> None:
    begun(data, tmp_path / "whole")
    stops = [1, 1, 2, 3, 4, 4, 5, 7, 9, *[STEPS] * 11]
    said = [started(data, tmp_path / "parts", most) for most in stops]
    assert len(said) == 20 and not any("going on" in line for line in said[0])
    assert "going on from step-00000009" in "\n".join(said[9])
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    starts = read_records(tmp_path / "parts" / "starts.jsonl")
    assert [start["step"] for start in starts] == [0, *stops[:-1]]


def test_what_resume_by_itself_refuses_is_begun(data: str, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"--resume: .* does not exist; .*--resume auto"):
        run_worker(spec_of(data, tmp_path / "run", True), Notes())
    started(data, tmp_path / "run", 2)
    assert (tmp_path / "run" / "config.json").is_file()


def test_other_settings_are_still_refused(data: str, tmp_path: Path) -> None:
    started(data, tmp_path / "run", 2)
    with pytest.raises(Mistake, match=r"--model.dim: was .*, now 12"):
        run_worker(spec_of(data, tmp_path / "run", "auto", model={"dim": 12}), Notes())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], "never"),
        (["--resume"], "always"),
        (["--resume", "--verbose-is-elsewhere"], None),
        (["--resume", "always"], "always"),
        (["--resume", "auto"], "auto"),
        (["--resume=auto"], "auto"),
        (["--resume", "never"], "never"),
        (["--resume", "--training.epochs", "3"], "always"),
        (["--resume", "perhaps"], None),
    ],
    ids=str,
)
def test_how_it_is_said(given: list[str], meant: str | None) -> None:
    if meant is None:
        with pytest.raises(SystemExit):
            parse_preset([*FLAGS, *given], "tandem train", TrainArguments)
        return
    preset, parsed = parse_preset([*FLAGS, *given], "tandem train", TrainArguments)
    assert parsed.resume == meant
    assert parsed.run_spec(preset).resume == {"never": False, "always": True}.get(meant, meant)


def test_in_python(data: str, tmp_path: Path) -> None:
    config = spec_of(data, tmp_path).config
    for epochs in (1, 1, 2):
        overrides = {"training.epochs": epochs}
        out = tmp_path / "run"
        tandem.train(config, data=data, out=out, overrides=overrides, resume="auto")
    assert max(losses(tmp_path / "run")) == 2 * STEPS


def test_a_job_goes_on_by_itself_unless_told_otherwise() -> None:
    train = ["train", *FLAGS]
    assert going_on(train) == [*train, "--resume", "auto"]
    for own in (["--resume"], ["--resume=never"], ["--resume", "auto"]):
        assert going_on([*train, *own]) == [*train, *own]
    assert going_on(["evaluate", "r"]) == ["evaluate", "r"]


def owner_elsewhere(folder: Path, age: float) -> None:
    theirs = {"run_id": "theirs", "token": "t", "host": "node-b", "machine": "m", "pid": 7}
    there = time.time() - age
    write_json(folder / "owner.json", {**theirs, "renewed": there})
    os.utime(folder / "owner.json", (there, there))


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "SILENT_SECONDS", 1.5)
    monkeypatch.setattr(signs, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(signs, "LOOK_SECONDS", 0.05)


def test_a_node_that_died_a_moment_ago_is_waited_for(tmp_path: Path, short_waits: None) -> None:
    owner_elsewhere(tmp_path, age=0.5)
    with pytest.raises(Mistake, match="in use by another run, on node-b"):
        RunLock(tmp_path).take("ours")
    after = RunLock(tmp_path)
    after.take("ours", waits=True)
    assert json.loads((tmp_path / "owner.json").read_text())["run_id"] == "ours"
    after.release()


def test_a_start_that_is_about_to_go_is_waited_for(tmp_path: Path, short_waits: None) -> None:
    before, after = RunLock(tmp_path), RunLock(tmp_path)
    before.take("theirs")
    ending = threading.Timer(0.5, before.release)
    ending.start()
    after.take("ours", waits=True)
    ending.join()
    after.release()


def test_one_that_lives_on_is_not_disturbed(
    tmp_path: Path, short_waits: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Two users' runs of one name."""
    theirs = RunLock(tmp_path)
    theirs.take("theirs")
    with pytest.raises(Mistake, match="in use by another run"):
        RunLock(tmp_path).take("ours", waits=True)
    assert json.loads((tmp_path / "owner.json").read_text())["run_id"] == "theirs"
    assert caplog.text.count("is waited for up to") == 1
    theirs.release()
    over = threading.Event()

    def elsewhere() -> None:
        while not over.wait(0.1):
            owner_elsewhere(tmp_path, age=0.0)

    owner_elsewhere(tmp_path, age=0.0)
    living = threading.Thread(target=elsewhere)
    living.start()
    try:
        with pytest.raises(Mistake, match="in use by another run, on node-b"):
            RunLock(tmp_path).take("ours", waits=True)
    finally:
        over.set()
        living.join()
