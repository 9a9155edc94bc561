"""Hung ranks: what counts as progress in each phase, and who is named."""

import threading
import time
from typing import Any, get_args
from unittest.mock import Mock

import pytest
import ray.exceptions

from cluster.workers.heartbeat import CONDEMNED_STATUS, Heartbeat
from cluster.workers.pulses import PATIENCE, SILENT_SECONDS, Answer, Beat, Pulses
from trainer.distributed.hooks import RunPhase

TIMEOUT = 30.0


class Group:
    """Two ranks that beat, and a clock to set."""

    def __init__(self, count: int = 2) -> None:
        self.now = 0.0
        self.pulses = Pulses(TIMEOUT, clock=lambda: self.now)
        self.pulses.begin(1, count)
        self.signs = dict.fromkeys(range(count), 0)

    def beat(
        self,
        rank: int,
        step: int,
        phase: RunPhase = "training",
        done: int = 0,
        total: int | None = None,
        *,
        sign: bool = False,
        group: int = 1,
    ) -> str | None:
        """A beat, with a sign of progress or without."""
        self.signs[rank] += sign
        where = f"pid {100 + rank} on node-a"
        beat = Beat(rank, step, phase, done, total, self.signs[rank], where, "n")
        return self.pulses.beat(group, beat).verdict

    def beat_on(self, until: float, *beats: tuple[Any, ...], sign: bool = False) -> str | None:
        """The same beats every two seconds; the first verdict on them."""
        while self.now < until:
            self.now += 2.0
            for beat in beats:
                verdict = self.beat(*beat, sign=sign)
                if verdict is not None:
                    return verdict
        return None


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.mark.parametrize("phase", PATIENCE)
def test_a_group_that_gets_on_is_left_alone_in_every_phase(group: Group, phase: RunPhase) -> None:
    """An evaluation of an hour, for one: block by block it is no hang."""
    assert group.beat_on(3600, (0, 7, phase, 1), (1, 7, phase, 1), sign=True) is None


def test_one_rank_that_gets_on_speaks_for_all(group: Group) -> None:
    """It may have more to do than the others, which wait for it."""
    while group.now < 600:
        group.now += 2.0
        assert group.beat(0, 7, sign=True) is None
        assert group.beat(1, 7) is None


@pytest.mark.parametrize("phase", PATIENCE)
def test_a_hang_is_found_in_every_phase(group: Group, phase: RunPhase) -> None:
    limit = PATIENCE[phase] * TIMEOUT
    verdict = group.beat_on(1000, (0, 7, phase, 3, 9), (1, 7, phase, 3, 9))
    assert verdict is not None
    assert limit < group.now <= limit + 4
    assert verdict.startswith("all 2 ranks hang after step 7")
    if phase == "training":
        assert verdict == "all 2 ranks hang after step 7: no progress within --step-timeout 30 s"
    else:
        assert f", {phase} 3 of 9: no progress within" in verdict


def test_the_slowest_phase_that_a_rank_is_in_counts(group: Group) -> None:
    """Rank 0 closes a file on a slow disk; rank 1 waits for it in its next step."""
    verdict = group.beat_on(1000, (0, 7, "checkpointing", 5, 9), (1, 8, "training"))
    assert group.now > PATIENCE["checkpointing"] * TIMEOUT
    assert verdict == (
        "rank 0 (pid 100 on node-a) hangs after step 7, checkpointing 5 of 9: "
        "no progress within 3 times --step-timeout 30 s"
    )


def test_a_silent_rank_is_named(group: Group) -> None:
    group.beat(0, 7), group.beat(1, 7, "evaluating", 1024, 94_654)
    verdict = group.beat_on(40, (0, 7))
    assert group.now == 32.0
    assert verdict == (
        "rank 1 (pid 101 on node-a) has not answered for 32 s, last heard of at step 7, "
        "evaluating 1,024 of 94,654: no progress within --step-timeout 30 s"
    )
    assert SILENT_SECONDS < 32


def test_silence_is_not_excused_by_a_slow_phase(group: Group) -> None:
    """A rank whose thread does not beat is stopped or cut off, whatever it was at."""
    group.beat(0, 0, "starting"), group.beat(1, 0, "starting")
    verdict = group.beat_on(40, (0, 0, "starting"))
    assert verdict is not None and verdict.startswith("rank 1 (pid 101 on node-a) has not answered")


def test_a_rank_that_hangs_at_once_is_named(group: Group) -> None:
    verdict = group.beat_on(40, (0, 7))
    assert verdict == (
        "rank 1 has not answered since the group began: no progress within --step-timeout 30 s"
    )


def test_those_that_are_behind_are_named() -> None:
    group = Group(3)
    verdict = group.beat_on(40, (0, 8), (1, 7), (2, 7))
    assert verdict is not None
    assert verdict.startswith(
        "rank 1 (pid 101 on node-a), rank 2 (pid 102 on node-a) hang after step 7: "
    )


def test_who_is_behind_in_an_evaluation_is_named(group: Group) -> None:
    beats = ((0, 7, "evaluating", 4096, 9000), (1, 7, "evaluating", 3072, 9000))
    verdict = group.beat_on(40, *beats)
    assert verdict is not None
    assert verdict.startswith(
        "rank 1 (pid 101 on node-a) hangs after step 7, evaluating 3,072 of 9,000: "
    )


def test_a_group_of_one(group: Group) -> None:
    group = Group(1)
    verdict = group.beat_on(40, (0, 7))
    assert verdict is not None and verdict.startswith("rank 0 (pid 100 on node-a) hangs after")


def test_a_new_attempt_starts_afresh(group: Group) -> None:
    assert group.beat_on(40, (0, 7), (1, 7)) is not None
    group.pulses.begin(2, 2)
    assert group.pulses.verdict is None
    assert group.beat(0, 7, group=1) is None  # a straggler of the first group
    assert group.pulses.beats == []
    assert group.beat(0, 0, group=2) is None


def test_a_group_is_asked_to_stop_by_its_number(group: Group) -> None:
    beat = Beat(0, 1, "training", 1, 9, 1, "here", "n")
    group.pulses.ask_to_stop(2)
    assert not group.pulses.beat(1, beat).stop
    group.pulses.ask_to_stop(1)
    assert group.pulses.beat(1, beat).stop
    group.pulses.begin(2, 2)
    assert not group.pulses.beat(2, beat).stop


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get_runtime_context", Mock())
    monkeypatch.setattr("cluster.workers.heartbeat.BEAT_SECONDS", 0.05)


@pytest.mark.parametrize("reachable", [True, False])
def test_a_rank_that_is_cut_off_ends_after_the_step_timeout(
    reachable: bool, monkeypatch: pytest.MonkeyPatch, quick_beats: None
) -> None:
    """On a node that the network was cut from, no verdict arrives; RUN's lock must be let go."""
    ended = threading.Event()
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    def get(beat: Any, timeout: float) -> Answer:
        if reachable:
            return Answer()
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr("ray.get", get)
    heartbeat = Heartbeat(Mock(), group=1, rank=0, step_timeout_seconds=0.5)
    started = time.monotonic()
    heartbeat.start()
    assert ended.wait(2.0 if reachable else 60.0) is not reachable
    heartbeat.stop()
    assert set(statuses) == (set() if reachable else {CONDEMNED_STATUS})
    assert time.monotonic() - started > 0.5


def test_the_first_beat_does_not_wait(monkeypatch: pytest.MonkeyPatch, quick_beats: None) -> None:
    """A rank that hangs within the first seconds has been heard of, with its pid."""
    heard = threading.Event()
    relay = Mock()
    relay.beat.remote = lambda *_: heard.set()
    monkeypatch.setattr("ray.get", lambda *_, **__: Answer())
    monkeypatch.setattr("cluster.workers.heartbeat.BEAT_SECONDS", 3600.0)
    heartbeat = Heartbeat(relay, group=1, rank=0, step_timeout_seconds=30.0)
    heartbeat.start()
    assert heard.wait(30.0)
    monkeypatch.setattr("cluster.workers.heartbeat.BEAT_SECONDS", 0.05)
    heartbeat.stop()


def test_every_call_of_a_hook_is_a_sign(monkeypatch: pytest.MonkeyPatch, quick_beats: None) -> None:
    told: list[Beat] = []
    relay = Mock()
    relay.beat.remote = lambda group, beat: told.append(beat)
    monkeypatch.setattr("ray.get", lambda *_, **__: Answer(stop=True))
    heartbeat = Heartbeat(relay, group=1, rank=3, step_timeout_seconds=30.0)
    heartbeat.on_phase("starting", 0, None)
    heartbeat.on_step(7)
    heartbeat.on_phase("evaluating", 1024, 94_654)
    heartbeat.on_phase("evaluating", 1024, 94_654)  # where nothing is counted, work may go on
    heartbeat.start()
    deadline = time.monotonic() + 30
    while not heartbeat.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.01)
    heartbeat.stop()
    first = told[0]
    assert (first.rank, first.step, first.signs) == (3, 7, 4)
    assert first.at == "step 7, evaluating 1,024 of 94,654"
    assert heartbeat.stop_requested()


def test_every_phase_that_a_rank_can_tell_has_its_patience() -> None:
    """A rank that waits for data tells a phase that nobody had counted on: a KeyError."""
    assert set(PATIENCE) == set(get_args(RunPhase))


def test_one_that_hangs_after_the_others_have_left_is_found(group: Group) -> None:
    """Nobody beats any more: the verdict was only ever asked for by a beat, and the run stood."""
    group.beat(0, 7, "stopped", sign=True)
    group.beat(1, 7, "checkpointing", sign=True)
    group.pulses.leave(1, 0)
    group.now += TIMEOUT - 1
    assert group.pulses.judge() is None
    group.now += 2
    verdict = group.pulses.judge()
    assert verdict is not None and verdict.startswith("rank 1 (pid 101 on node-a) has not answered")
    assert [beat.rank for beat in group.pulses.remaining] == [1]


def test_a_group_that_has_left_is_not_condemned(group: Group) -> None:
    """However long Ray takes to notice."""
    for rank in (0, 1):
        group.beat(rank, 7, "finished", sign=True)
        group.pulses.leave(1, rank)
        group.now += 10 * TIMEOUT
    assert group.pulses.judge() is None


def test_one_that_goes_on_after_the_others_have_left_may(group: Group) -> None:
    group.beat(1, 7, "stopped", sign=True)
    group.pulses.leave(1, 1)
    assert group.beat_on(5 * TIMEOUT, (0, 7, "evaluating"), sign=True) is None
