"""The mirror's thread: training never waits for a tracker, and lines outlive its failures."""

import time
from pathlib import Path
from threading import Event

import pytest

from trainer.base.mistake import Mistake
from trainer.observe.trackers import mirror
from trainer.observe.trackers.mirror import Mirror, Mirrors, check_trackers
from trainer.observe.trackers.tracker import Tracked

LONG_SECONDS = 30.0


class Kept:
    """A tracker that keeps what it is told, and fails where it is asked to."""

    def __init__(self, fails_at: tuple[int, ...] = (), held: Event | None = None) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        self._fails_at = list(fails_at)
        self._held = held

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._held is not None:
            self._held.wait(LONG_SECONDS)
        if step in self._fails_at:
            self._fails_at.remove(step)
            raise ConnectionError(f"no answer\nto step {step}")
        self.lines.append((step, values))

    def close(self) -> None:
        self.closed = True


def test_lines_come_in_order_and_the_tracker_is_closed() -> None:
    kept = Kept()
    mirrored = Mirror("kept", lambda: kept)
    for step in range(5):
        mirrored.log(step, {"loss": float(step)})
    mirrored.end()
    mirrored.join()
    assert kept.lines == [(step, {"loss": float(step)}) for step in range(5)]
    assert kept.closed and mirrored.take_failure() is None


def test_a_line_that_was_not_taken_is_told_again_and_the_failure_once() -> None:
    kept = Kept(fails_at=(1, 3))
    mirrored = Mirror("kept", lambda: kept)
    for step in range(5):
        mirrored.log(step, {})
    mirrored.end()
    mirrored.join()
    assert [step for step, _ in kept.lines] == [0, 1, 2, 3, 4]
    assert mirrored.take_failure() == "ConnectionError: no answer"
    assert mirrored.take_failure() is None


def test_a_tracker_that_opens_late_has_every_line() -> None:
    kept, tries = Kept(), []

    def opening() -> Kept:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("starting")
        return kept

    mirrored = Mirror("kept", opening)
    for step in range(4):
        mirrored.log(step, {})
    mirrored.end()
    mirrored.join()
    assert [step for step, _ in kept.lines] == [0, 1, 2, 3]
    assert mirrored.take_failure() == "OSError: starting"


def test_nobody_waits_for_a_tracker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "CLOSING_SECONDS", 0.1)
    held = Event()
    mirrored = Mirror("kept", lambda: Kept(held=held))
    before = time.monotonic()
    for step in range(1000):
        mirrored.log(step, {})
    mirrored.end()
    mirrored.join()
    held.set()
    assert time.monotonic() - before < LONG_SECONDS / 2
    assert mirrored.take_failure() == "its last lines were not taken within 0 s"


def test_what_of_a_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, said = Kept(), []
    monkeypatch.setattr(mirror, "open_tracker", lambda name, tracked: kept)
    mirrors = Mirrors(("wandb",), Tracked("RUN", tmp_path, 0, {}), said.append)
    mirrors.log("", {"step": 7, "time": 1.7e9, "loss": 2, "note": "words"})
    mirrors.log("validation/", {"step": 7, "time": 1.7e9, "ndcg@20": 0.5})
    mirrors.close()
    assert kept.lines == [(7, {"loss": 2.0}), (7, {"validation/ndcg_at_20": 0.5})]
    assert said == []


def test_a_failure_is_said_with_the_trackers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(mirror, "open_tracker", lambda name, tracked: Kept(fails_at=(7,)))
    mirrors = Mirrors(("mlflow",), Tracked("RUN", tmp_path, 0, {}), said.append)
    mirrors.log("", {"step": 7, "loss": 2.0})
    mirrors.close()
    assert said == ["--track mlflow: ConnectionError: no answer; metrics.jsonl has every line"]


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "tensorboardX"), ("mlflow", "mlflow-skinny"), ("wandb", "wandb")],
)
def test_a_library_that_is_absent_is_one_line(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "find_spec", lambda module: None)
    with pytest.raises(Mistake, match=f"^--track {name}: .* run: pip install {package}$"):
        check_trackers((name,), "RUN")  # type: ignore[arg-type]


def test_where_it_goes_is_asked_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "find_spec", lambda module: object())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(Mistake, match="MLFLOW_TRACKING_URI is not set"):
        check_trackers(("mlflow",), "RUN")
    with pytest.raises(Mistake, match="an --out on a disk"):
        check_trackers(("tensorboard",), "memory://bucket/run")
    check_trackers(("wandb",), "memory://bucket/run")
