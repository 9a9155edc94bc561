"""What launching is made of, without starting Ray: workers, causes, pulses, discovery, relay."""

import json
import logging
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from unittest.mock import Mock

import pytest
import ray
import ray.exceptions
from ray.train import ControllerError, WorkerGroupError

from cluster.elastic import GroupWatch, check_divides, choose, wait_for_room
from cluster.failures import RunFailedError, first_cause
from cluster.heartbeat import CONDEMNED_STATUS, SILENT_SECONDS, Answer, Heartbeat, Pulses
from cluster.options import LaunchOptions
from cluster.relay import RelayLog, RelayProgress
from cluster.service_discovery import ReachableTargets, ServiceDiscovery
from cluster.session import held_errors, join_message, ray_session
from cluster.usage import UsageError
from cluster.workers import Resources, Workers
from trainer.mistake import Mistake
from trainer.progress import SilentProgress
from trainer.small_http import PAGE_SECONDS

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41312")


class Died(ray.exceptions.RayActorError):
    """A dead worker, in Ray's own words."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


class TestWorkers:
    def test_a_number_or_a_range(self) -> None:
        assert Workers.parse("4") == Workers(4, 4)
        assert Workers.parse("2..8") == Workers(2, 8)
        assert str(Workers.parse("2..8")) == "2..8"

    @pytest.mark.parametrize("text", ["0", "-1", "8..2", "two", "2..", "2-8", ""])
    def test_anything_else_is_wrong_usage(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"--workers"):
            Workers.parse(text)

    def test_more_than_the_cluster_has_is_refused_not_waited_for(self) -> None:
        Workers.parse("8..16").check_fits(Resources(cpus=4, gpus=0))  # nodes may come
        with pytest.raises(ValueError, match=r"--workers 8: the cluster has 4 CPUs"):
            Workers.parse("8").check_fits(Resources(cpus=4, gpus=0))
        with pytest.raises(ValueError, match="2 GPUs"):
            Workers.parse("4").check_fits(Resources(cpus=64, gpus=2))

    def test_defaults_are_gpus_or_half_the_cpus(self) -> None:
        assert Resources(cpus=64, gpus=8).default_workers == 8
        assert Resources(cpus=8, gpus=0).default_workers == 4
        assert Resources(cpus=1, gpus=0).default_workers == 1


class TestElastic:
    def test_the_most_that_has_room_and_divides_the_batch(self) -> None:
        range_ = Workers(2, 8)
        assert [choose(range_, room, 2048) for room in range(10)] == [
            *(None, None, 2, 2, 4, 4, 4, 4, 8, 8)
        ]
        assert choose(Workers(3, 3), 8, 2048) is None
        check_divides(range_, 2048)
        with pytest.raises(ValueError, match=r"--workers 3: .*2048"):
            check_divides(Workers(3, 3), 2048)

    def test_what_comes_back_a_moment_later_is_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        looks = iter([0, 1, 2, 2, 2])
        count = wait_for_room(
            Workers(1, 4), 2048, "CPU", SilentProgress(), 60.0, room=lambda unit: next(looks)
        )
        assert count == 2  # two looks agree; the least, 1, is not settled for

    def test_growing_waits_for_the_room_that_was_seen(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The old group's workers are told free one by one, now and then with a pause."""
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        workers, looks = Workers(1, 4), [1, 1, 1, 2, 2]
        slow = iter(looks)
        count = wait_for_room(
            workers, 2048, "CPU", SilentProgress(), 60.0, hoped=2, room=lambda unit: next(slow)
        )
        assert (count, list(slow)) == (2, [])
        # The node went away again: fewer start, after a while.
        monkeypatch.setattr("cluster.elastic.SETTLE_SECONDS", 0.0)
        count = wait_for_room(
            workers, 2048, "CPU", SilentProgress(), 60.0, hoped=2, room=lambda unit: 1
        )
        assert count == 1

    def test_patience_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        with pytest.raises(RunFailedError, match="no room for 2 workers in 0 s"):
            wait_for_room(Workers(2, 4), 2048, "CPU", SilentProgress(), 0.01, room=lambda unit: 1)

    def test_a_group_is_asked_to_stop_once(self) -> None:
        asked: list[int] = []
        terminated = threading.Event()
        watch = GroupWatch(lambda: asked.append(1), terminated, lambda: False, lambda: False, 0.01)
        with watch:
            time.sleep(0.5)
            assert asked == []
            terminated.set()
            time.sleep(0.6)
        assert asked == [1]


class TestFirstCause:
    def test_the_users_mistake_comes_back_as_it_is(self) -> None:
        error = WorkerGroupError("", {0: GLOO, 1: Mistake("--k 0: must be at least 1")})
        cause = first_cause(error)
        assert type(cause) is Mistake
        assert str(cause) == "--k 0: must be at least 1"

    def test_a_rank_that_throws_is_named_not_those_it_cut_off(self) -> None:
        cause = first_cause(WorkerGroupError("", {0: GLOO, 1: OSError("disk is gone"), 2: GLOO}))
        assert isinstance(cause, RunFailedError)
        assert str(cause) == "rank 1: OSError: disk is gone"
        assert cause.retry

    def test_a_dead_process_counts_before_broken_connections(self) -> None:
        died = Died(
            "Worker exit detail: Worker exits with a connection error code 2. End of file. "
            "Some common causes include: (1) OOM killer ... a hundred words more"
        )
        cause = first_cause(WorkerGroupError("", {0: GLOO, 1: died}))
        assert isinstance(cause, RunFailedError)
        assert str(cause).startswith("rank 1: worker process died: Worker exits with a conn")
        assert "hundred words" not in str(cause)
        assert cause.retry

    def test_the_same_failure_everywhere_is_told_once(self) -> None:
        same = {rank: RuntimeError("CUDA error: out of memory") for rank in range(8)}
        cause = first_cause(WorkerGroupError("", same))
        assert str(cause) == "RuntimeError: CUDA error: out of memory"

    def test_our_own_bugs_are_not_tried_again(self) -> None:
        cause = first_cause(WorkerGroupError("", {0: KeyError("loss")}))
        assert isinstance(cause, RunFailedError)
        assert not cause.retry

    def test_a_worker_that_died_while_starting(self) -> None:
        cause = first_cause(ControllerError(Died("it died")))
        assert isinstance(cause, RunFailedError)
        assert cause.retry
        assert str(cause).startswith("worker process died")


class TestPulses:
    def setup_method(self) -> None:
        self.now = 0.0
        self.pulses = Pulses(step_timeout_seconds=30.0, clock=lambda: self.now)
        self.pulses.begin(1, 2)

    def beat(self, rank: int, step: int, group: int = 1) -> str | None:
        return self.pulses.beat(group, rank, step, f"pid {100 + rank} on node-a", "n").verdict

    def test_a_group_that_steps_is_left_alone(self) -> None:
        for second in range(0, 200, 2):
            self.now = float(second)
            assert self.beat(0, second // 10) is None
            assert self.beat(1, second // 10) is None

    def test_a_silent_rank_is_named(self) -> None:
        self.beat(0, 7), self.beat(1, 7)
        for second in range(2, 31, 2):
            self.now = float(second)
            assert self.beat(0, 7) is None
        self.now = 32.0
        verdict = self.beat(0, 7)
        assert verdict == (
            "rank 1 (pid 101 on node-a) has not answered for 32 s: "
            "no step within --step-timeout 30 s, last heard of at step 7"
        )
        assert SILENT_SECONDS < 32

    def test_a_rank_that_hangs_at_once_is_named(self) -> None:
        for second in range(0, 34, 2):
            self.now = float(second)
            verdict = self.beat(0, 7)
        assert verdict == (
            "rank 1 has not answered since the group began: no step within --step-timeout 30 s"
        )

    def test_a_rank_that_is_behind_is_named(self) -> None:
        for second in range(0, 34, 2):
            self.now = float(second)
            self.beat(0, 8)
            verdict = self.beat(1, 7)
        assert verdict is not None
        assert verdict.startswith("rank 1 (pid 101 on node-a) hangs after step 7")

    def test_other_progress_counts_and_a_new_attempt_starts_afresh(self) -> None:
        self.beat(0, 7)
        self.now = 29.0
        self.pulses.advance()
        self.now = 50.0
        assert self.beat(0, 7) is None
        self.now = 90.0
        assert self.beat(0, 7) is not None
        self.pulses.begin(2, 2)
        assert self.pulses.verdict is None
        assert self.beat(0, 7, group=1) is None  # a straggler of the first group
        assert self.beat(0, 0, group=2) is None

    def test_a_group_is_asked_to_stop_by_its_number(self) -> None:
        self.pulses.ask_to_stop(2)
        assert not self.pulses.beat(1, 0, 1, "here", "n").stop
        self.pulses.ask_to_stop(1)
        assert self.pulses.beat(1, 0, 2, "here", "n").stop
        self.pulses.begin(2, 2)
        assert not self.pulses.beat(2, 0, 2, "here", "n").stop


class TestServiceDiscovery:
    def read(self, url: str) -> list[dict[str, Any]]:
        time.sleep(2 * PAGE_SECONDS)  # a page is not made anew sooner
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            return json.load(answer)

    def test_the_url_stays_while_ranks_come_and_go(self) -> None:
        with ServiceDiscovery("run-1", port=0) as discovery:
            url = discovery.url
            assert self.read(url) == []
            discovery.set_target(1, "127.0.0.1:4001")
            discovery.set_target(0, "127.0.0.1:4000")
            assert self.read(url) == [
                {"targets": ["127.0.0.1:4000"], "labels": {"run": "run-1", "rank": "0"}},
                {"targets": ["127.0.0.1:4001"], "labels": {"run": "run-1", "rank": "1"}},
            ]
            discovery.keep_ranks_below(1)
            discovery.set_target(0, "127.0.0.1:5000")
            assert [group["targets"] for group in self.read(url)] == [["127.0.0.1:5000"]]
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(url.replace("targets", "else"), timeout=5)

    def test_a_taken_port_gives_the_next(self) -> None:
        with (
            ServiceDiscovery("a", port=19480) as first,
            ServiceDiscovery("b", port=19480) as second,
        ):
            assert first.url != second.url
            assert self.read(second.url) == []


class TestTargets:
    def listed(self, discovery: ServiceDiscovery) -> list[str]:
        return [target for group in json.loads(discovery.render()) for target in group["targets"]]

    def test_runs_of_one_name_are_told_apart(self) -> None:
        with ServiceDiscovery("/a/run", port=0) as one, ServiceDiscovery("/b/run", port=0) as two:
            for discovery in (one, two):
                discovery.set_target(0, "h:1")
            assert json.loads(one.render())[0]["labels"] != json.loads(two.render())[0]["labels"]

    def test_what_only_another_machine_reaches_is_not_listed_and_said_once(self) -> None:
        said: list[str] = []
        progress = Mock(message=said.append)
        with ServiceDiscovery("run", port=0) as discovery:
            targets = ReachableTargets(discovery, progress, here="10.0.0.1")
            targets.set(0, "127.0.0.1:4000", "10.0.0.1")
            targets.set(1, "127.0.0.1:4000", "10.0.0.2")
            targets.set(2, "10.0.0.2:4001", "10.0.0.2")
            targets.set(3, "[::1]:4001", "10.0.0.3")
            assert self.listed(discovery) == ["127.0.0.1:4000", "10.0.0.2:4001"]
        assert len(said) == 1
        assert "on 10.0.0.2 they are served at 127.0.0.1" in said[0]
        assert "--metrics.host 0.0.0.0" in said[0]

    def test_every_address_is_told_as_one_that_reaches_it(self) -> None:
        with ServiceDiscovery("run", host="0.0.0.0", port=0) as discovery:
            assert "0.0.0.0" not in discovery.url
            with urllib.request.urlopen(discovery.url, timeout=5) as answer:
                assert answer.read() == b"[]"

    @pytest.mark.parametrize("host", ["192.0.2.77", "no such host", "x" * 300, "300.1.1.1"])
    def test_a_host_that_is_not_this_machines_is_one_line(self, host: str) -> None:
        with pytest.raises(Mistake, match="--discovery-host") as raised:
            ServiceDiscovery("run", host=host, port=0)
        assert host in str(raised.value) and "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"discovery_port": 99_999},
            {"discovery_port": -1},
            {"discovery_host": ""},
            {"step_timeout_seconds": float("nan")},
            {"patience_seconds": float("inf")},
            {"resize_seconds": 0.0},
            {"max_failures": -1},
        ],
    )
    def test_options_out_of_range_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(Mistake, match="--"):
            LaunchOptions(**options)

    def test_the_last_ports_are_not_overrun(self) -> None:
        with ServiceDiscovery("a", port=65_535) as first:
            assert first.url.endswith(":65535/targets")
            with pytest.raises(Mistake, match=r"--discovery-port 65535: all of 65535\.\.65535"):
                ServiceDiscovery("b", port=65_535)


class FakeRelay:
    """Stands for the actor's handle: records what would be sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.put = self

    def remote(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append((*args, kwargs))


@pytest.mark.parametrize("reachable", [True, False])
def test_a_rank_that_is_cut_off_ends_after_the_step_timeout(
    reachable: bool, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr("ray.get_runtime_context", Mock())
    monkeypatch.setattr("cluster.heartbeat.BEAT_SECONDS", 0.05)
    heartbeat = Heartbeat(Mock(), group=1, rank=0, step_timeout_seconds=0.5)
    started = time.monotonic()
    heartbeat.start()
    assert ended.wait(2.0 if reachable else 60.0) is not reachable
    heartbeat.stop()
    assert set(statuses) == (set() if reachable else {CONDEMNED_STATUS})
    assert time.monotonic() - started > 0.5


def test_the_first_beat_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that hangs within the first seconds has been heard of, with its pid."""
    heard = threading.Event()
    relay = Mock()
    relay.beat.remote = lambda *_: heard.set()
    monkeypatch.setattr("ray.get", lambda *_, **__: Answer())
    monkeypatch.setattr("ray.get_runtime_context", Mock())
    monkeypatch.setattr("cluster.heartbeat.BEAT_SECONDS", 3600.0)
    heartbeat = Heartbeat(relay, group=1, rank=0, step_timeout_seconds=30.0)
    heartbeat.start()
    assert heard.wait(30.0)
    monkeypatch.setattr("cluster.heartbeat.BEAT_SECONDS", 0.05)
    heartbeat.stop()


def test_relayed_updates_are_thinned_but_the_last_one_arrives() -> None:
    relay = FakeRelay()
    progress = RelayProgress(relay)
    for step in range(1, 1001):
        progress.update("training", step, 1000, loss=1.0)
    progress.message("done")
    assert len(relay.sent) < 20
    assert relay.sent[0] == ("update", "training", 1, 1000, {"loss": 1.0})
    assert relay.sent[-2] == ("update", "training", 1000, 1000, {"loss": 1.0})
    assert relay.sent[-1] == ("message", "done", {})


def test_a_workers_errors_reach_the_user() -> None:
    relay = FakeRelay()
    logger = logging.getLogger("tests.relayed")
    logger.addHandler(RelayLog(relay))
    logger.error("checkpoint %s is damaged", "step-00000004")
    logger.warning("not this")
    assert relay.sent == [("message", "checkpoint step-00000004 is damaged", {})]


def test_joining_says_what_to_set() -> None:
    token = join_message("auto", ray.exceptions.AuthenticationError("token is missing"))
    assert "RAY_AUTH_TOKEN" in token
    assert "ray get-auth-token" in token
    absent = join_message("auto", ConnectionError("Could not find any running Ray instance"))
    assert "ray start --head" in absent
    refused = join_message("auto", ConnectionError("Failed to connect"), refused=True)
    assert "asks for a token" in refused and "RAY_AUTH_TOKEN" in refused


def test_what_native_code_writes_while_joining_is_held_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with held_errors() as held:
        os.write(2, b"Unauthenticated, try 1\n")
        print("Unauthenticated, try 2", file=sys.__stderr__, flush=True)
        held.seek(0)
        assert b"try 1" in held.read()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(Mistake, match="Ray did not start on this machine within its 30 s"),
        ray_session(None),
    ):
        pass
