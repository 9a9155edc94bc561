"""The relay: no event is lost or told twice, and no question that fails ends the driver."""

import logging
import signal
import subprocess
import sys
from typing import Any

import pytest
import ray.exceptions
from ray.remote_function import RemoteFunction

from cluster.workers import relay as module
from cluster.workers.pulses import Beat
from cluster.workers.relay import (
    Receipt,
    Relay,
    RelayLink,
    RelayLog,
    RelayProgress,
    RelayReader,
)
from trainer.base.stopping import Terminated, Told

BEAT = Beat(0, 7, "training", 7, 9, 1, "pid 1 on a", "node-a")


class Handle:
    """Stands for the actor's handle: calls at once; answers can be lost on their way back."""

    def __init__(self) -> None:
        self.actor = Relay(30.0)
        self.lost = 0
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*args: Any, **kwargs: Any) -> Any:
                if self.dead:
                    return ray.exceptions.RayActorError()
                return getattr(self.actor, name)(*args, **kwargs)

        return Method

    def get(self, answer: Any, timeout: float) -> Any:
        if isinstance(answer, Exception):
            raise answer
        if self.lost:
            self.lost -= 1
            raise ray.exceptions.GetTimeoutError
        return answer


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    handle = Handle()
    monkeypatch.setattr(module.ray, "get", handle.get)
    monkeypatch.setattr(module, "draining_nodes", set)
    handle.actor.begin(1, 2)
    return handle


def test_a_relay_that_loads_slowly_is_waited_for(handle: Handle) -> None:
    """A question to it was given two minutes, which ended runs on machines that others starve."""
    link, told = RelayLink(handle), Told()
    handle.lost = 5
    link.wait_until_up(told)
    handle.lost = 1_000_000
    told.hear(signal.SIGTERM)
    with pytest.raises(Terminated, match="stopped on SIGTERM before any worker had started"):
        link.wait_until_up(told)
    handle.dead = True
    with pytest.raises(ray.exceptions.RayActorError):
        link.wait_until_up(Told())


class Heard:
    """A reader, and what it has handled."""

    def __init__(self, handle: Handle) -> None:
        self.events: list[tuple[Any, ...]] = []
        names = ("update", "message", "serving")
        handlers = {name: self._note(name) for name in names}
        self.reader = RelayReader(handle, handlers)

    def _note(self, name: str) -> Any:
        return lambda *args, **kwargs: self.events.append((name, *args))


def test_an_answer_that_is_lost_costs_no_event(handle: Handle) -> None:
    """The address of a rank that was lost would never be scraped."""
    heard = Heard(handle)
    handle.actor.put(1, "serving", 0, "h:1", "node")
    handle.lost = 3
    for _ in range(3):
        heard.reader.read()
        handle.actor.put(1, "message", "more")
    assert heard.events == []
    heard.reader.read()
    heard.reader.read()
    assert heard.events == [("serving", 0, "h:1", "node"), *[("message", "more")] * 3]
    heard.reader.read()
    assert not handle.actor._events  # what is acknowledged is forgotten


def test_a_relay_that_is_started_anew_is_read_from_its_beginning(handle: Handle) -> None:
    heard = Heard(handle)
    for text in "abc":
        handle.actor.put(1, "message", text)
    heard.reader.read()
    handle.actor = Relay(30.0)
    handle.actor.put(1, "message", "of no group yet")
    RelayLink(handle).look(1, 2)
    handle.actor.put(1, "message", "d")
    heard.reader.read()
    heard.reader.read()
    assert [text for _, text in heard.events] == ["a", "b", "c", "d"]


def test_a_group_that_went_before_is_not_listened_to(handle: Handle) -> None:
    handle.actor.begin(2, 2)
    handle.actor.put(1, "serving", 0, "of the one that was cut off", "node")
    handle.actor.beat(1, BEAT)
    assert handle.actor.take(Receipt())[1] == []
    assert handle.actor.look(2, 2).beats == ()


def test_a_driver_that_is_away_loses_updates_alone(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 10)
    handle.actor.put(1, "serving", 0, "h:1", "node")
    for step in range(100):
        handle.actor.put(1, "update", "training", step, 100)
    handle.actor.put(1, "message", "kept")
    kept = [event for _, event in handle.actor.take(Receipt())[1]]
    assert len(kept) == 10
    assert kept[0][:2] == ("serving", (0, "h:1", "node"))
    assert kept[-1][:2] == ("message", ("kept",))
    assert kept[1][1][1] == 92  # the oldest went


def test_a_look_tells_of_nodes_that_will_leave(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle.actor.beat(1, BEAT)
    link = RelayLink(handle)
    look = link.look(1, 2)
    assert look is not None and look.beats == (BEAT,) and not look.leaving
    monkeypatch.setattr(module, "draining_nodes", lambda: {"node-a", "another"})
    look = link.look(1, 2)
    assert look is not None and look.leaving


def test_questions_that_fail_are_no_answer(handle: Handle) -> None:
    link = RelayLink(handle)
    handle.lost = 1
    assert link.look(1, 2) is None
    handle.dead = True
    assert link.look(1, 2) is None
    assert link.room(on_gpu=False) is None
    link.ask_to_stop(1)
    Heard(handle).reader.read()
    with pytest.raises(ray.exceptions.RayError):
        link.begin(2, 2)


def test_what_kills_a_hung_rank_is_a_task_that_ray_takes() -> None:
    assert isinstance(ray.remote(module.kill), RemoteFunction)
    hung = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    module.kill(hung.pid)
    assert hung.wait(60) == -signal.SIGKILL
    module.kill(hung.pid)  # it is gone, which is what was wanted


def test_room_is_reckoned_node_by_node(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 3.5}, {"CPU": 0.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"GPU": 1.0}]
    monkeypatch.setattr(module, "free_by_node", lambda: nodes)
    link = RelayLink(handle)
    assert link.room(on_gpu=False) == 3 + 8
    assert link.room(on_gpu=True) == 2  # a GPU without a free CPU starts nobody


class Sent:
    """Stands for the actor's handle: records what would be sent."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.put = self

    def remote(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((*args, kwargs))


def test_relayed_updates_are_thinned_but_the_last_one_arrives() -> None:
    sent = Sent()
    progress = RelayProgress(sent, group=4)
    for step in range(1, 1001):
        progress.update("training", step, 1000, loss=1.0)
    progress.message("done")
    assert len(sent.calls) < 20
    assert sent.calls[0] == (4, "update", "training", 1, 1000, {"loss": 1.0})
    assert sent.calls[-2] == (4, "update", "training", 1000, 1000, {"loss": 1.0})
    assert sent.calls[-1] == (4, "message", "done", {})


def test_a_workers_errors_reach_the_user() -> None:
    sent = Sent()
    logger = logging.getLogger("tests.relayed")
    logger.addHandler(RelayLog(sent, group=4))
    logger.error("checkpoint %s is damaged", "step-00000004")
    logger.warning("not this")
    assert sent.calls == [(4, "message", "checkpoint step-00000004 is damaged", {})]
