"""Machines whose clocks are off by a minute, an hour or years: nobody's life is told by them."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import make_dataset
from tests.distributed import start_rank
from tests.one_rank import Notes, spec_of
from tests.test_training import losses
from trainer.base.mistake import Mistake
from trainer.files import signs
from trainer.files.json_files import write_json
from trainer.files.signs import CLOCK_FILE, Signs
from trainer.live.runs import RunReader
from trainer.run import lock
from trainer.run.lock import RunLock
from trainer.run.state import read_state
from trainer.train import run_worker

OFFSETS = (-3e8, -3600.0, -61.0, 61.0, 3600.0, 3e8)
SETTINGS = {"training": {"epochs": 2}, "checkpoint": {"every_steps": 4}}


def shifted(seconds: float) -> Callable[[], float]:
    """`time.time` of a machine whose clock is ahead by so much."""
    real = time.time
    return lambda: real() + seconds


def owner_elsewhere(folder: Path, clock: float, silent: float = 0.0) -> None:
    """An owner on a machine whose clock is ahead by `clock`, silent for so long."""
    now = time.time() - silent
    theirs = {"run_id": "theirs", "token": "t", "host": "node-b", "machine": "m", "pid": 7}
    write_json(folder / "owner.json", {**theirs, "renewed": now + clock})
    os.utime(folder / "owner.json", (now, now))


@pytest.mark.parametrize("clock", OFFSETS)
def test_a_run_that_lives_is_not_taken_over_and_a_dead_one_is(clock: float, tmp_path: Path) -> None:
    """A start whose clock was a minute ahead took a living run for silent, and both wrote."""
    owner_elsewhere(tmp_path, clock, silent=20)
    with pytest.raises(Mistake, match=r"on node-b \(its last sign: 2\d s ago"):
        RunLock(tmp_path).take("ours")
    owner_elsewhere(tmp_path, clock, silent=signs.SILENT_SECONDS + 1)
    ours = RunLock(tmp_path)
    ours.take("ours")
    ours.release()
    assert not (tmp_path / CLOCK_FILE).exists()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(signs, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(signs, "LOOK_SECONDS", 0.05)


@pytest.mark.parametrize("clock", [-61.0, 61.0])
def test_one_that_dies_is_waited_for_by_the_starts_own_clock(
    clock: float, tmp_path: Path, short: None
) -> None:
    owner_elsewhere(tmp_path, clock)
    ours = RunLock(tmp_path)
    started = time.monotonic()
    ours.take("ours", waits=True)
    assert time.monotonic() - started > 0.9
    ours.release()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = {"run_id": "", "preset": "demo", "data": "", "dataset_digest": "", "world_size": 1}
    write_json(tmp_path / "config.json", {**config, "versions": {}, "config": {}})
    return tmp_path


@pytest.fixture
def renewing(run: Path, request: pytest.FixtureRequest, short: None) -> Iterator[Path]:
    """RUN with an owner that lives, whose clock is off."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(signs.RENEW_SECONDS):
            owner_elsewhere(run, request.param)

    owner_elsewhere(run, request.param)
    thread = threading.Thread(target=renew)
    thread.start()
    yield run
    over.set()
    thread.join()


@pytest.mark.parametrize("renewing", [-600.0, -61.0, 61.0, 3600.0], indirect=True)
def test_readers_see_that_it_lives(renewing: Path) -> None:
    assert read_state(renewing, watches=True).is_alive
    reader = RunReader(renewing)
    reader.read()
    time.sleep(4 * signs.RENEW_SECONDS)
    page = reader.read()
    assert page["now"]["is_alive"] and page["now"]["silent_seconds"] < 1
    assert page["troubles"] == []


@pytest.mark.parametrize("clock", [-61.0, 61.0])
def test_readers_see_that_it_is_dead(clock: float, run: Path, short: None) -> None:
    owner_elsewhere(run, clock)
    assert not read_state(run, watches=True).is_alive


def test_a_fresh_sign_is_believed_at_once() -> None:
    sign = Signs().noted("owner", time.time() - 3)
    assert sign.is_alive and not sign.in_doubt


def train_with_clock(seconds: float, spec: Any) -> None:
    time.time = shifted(seconds)
    run_worker(spec, Notes())


@pytest.mark.parametrize("clock", [-70.0, 70.0])
def test_a_training_whose_clock_is_off_by_a_minute(
    clock: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at and left alone by a machine whose clock is right; the same curve."""

    def no_locks(*arguments: Any) -> None:  # as another machine's are not seen
        raise OSError(errno.ENOLCK, "no locks")

    make_dataset(tmp_path / "data", users=60, items=40, rows=1400)
    spec = spec_of(str(tmp_path / "data"), tmp_path / "there", **SETTINGS)
    there = start_rank(train_with_clock, clock, spec)
    owner = tmp_path / "there" / "owner.json"
    while not owner.is_file():
        assert there.is_alive()
        time.sleep(0.005)
    assert abs(json.loads(owner.read_text())["renewed"] - time.time()) > 50
    with monkeypatch.context() as patched:
        patched.setattr(lock.fcntl, "flock", no_locks)
        with pytest.raises(Mistake, match="in use by another run"):
            RunLock(tmp_path / "there").take("ours")
    there.join()
    assert there.exitcode == 0
    run_worker(spec_of(str(tmp_path / "data"), tmp_path / "here", **SETTINGS), Notes())
    assert losses(tmp_path / "there") == losses(tmp_path / "here")
