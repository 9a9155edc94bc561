"""Groups of workers, one after the other, without Ray: restarts, growth, signals, waiting."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions
from ray.train import WorkerGroupError

from cluster.workers import group_watch
from cluster.workers.counts import Workers
from cluster.workers.elastic import check_divides, choose, wait_for_room
from cluster.workers.failures import RunFailedError, lost_nodes
from cluster.workers.group_watch import GroupWatch, InThread
from cluster.workers.groups import Groups
from cluster.workers.pulses import Beat
from cluster.workers.relay import Look
from trainer.base.mistake import Mistake
from trainer.base.stopping import Terminated, Told, terminations
from trainer.launch.launcher import Resumable

BEATS = tuple(Beat(rank, 7, "training", 7, 9, 1, f"pid {rank}", f"n{rank}") for rank in range(2))
CALM = Look(BEATS, None, leaving=False)
DONE = {"steps": 9, "phase": "finished"}
STOPPED = {"steps": 7, "phase": "stopped"}
GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection reset by peer [10.0.0.2]:41312")


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.workers.elastic.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("cluster.workers.group_watch.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("cluster.workers.group_watch.GLANCE_SECONDS", 0.005)
    monkeypatch.setattr("cluster.workers.groups.RETRY_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("cluster.workers.failures.MISSED_SECONDS", 0.0)
    monkeypatch.setattr("cluster.workers.failures.ray.nodes", list)
    monkeypatch.setattr("cluster.workers.group_watch.is_waiting_for_place", lambda: False)


@dataclass
class Screen:
    """A `Progress` that remembers."""

    lines: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        pass

    def message(self, text: str) -> None:
        self.lines.append(text)

    def waiting(self, words: str | None, seconds: float = 0.0) -> None:
        if words is not None and words not in self.waits:
            self.waits.append(words)

    def close(self) -> None:
        pass


@dataclass
class Link:
    """Stands for the relay: what it answers, and whom it asked to stop."""

    look_at: Look | None = CALM
    rooms: Iterator[int | None] = field(default_factory=lambda: itertools.repeat(2))
    relay: Any = None
    asked: list[int] = field(default_factory=list)
    begun: list[tuple[int, int]] = field(default_factory=list)

    def begin(self, group: int, count: int) -> None:
        self.begun.append((group, count))

    def ask_to_stop(self, group: int) -> None:
        self.asked.append(group)

    def look(self, group: int, count: int) -> Look | None:
        return self.look_at

    def room(self, on_gpu: bool) -> int | None:
        return next(self.rooms)


def resumable(saved_step: Callable[[], int] = lambda: 0) -> Resumable:
    return Resumable("RUN", 64, saved_step)


def groups(
    ends: list[Any], monkeypatch: pytest.MonkeyPatch, link: Link | None = None, **settings: Any
) -> Groups:
    """Groups that end one after the other as `ends` says: a summary, an error, or a function."""

    def fit() -> Any:
        end = ends.pop(0)
        if callable(end) and not isinstance(end, type):
            end = end()
        if isinstance(end, BaseException):
            raise end
        return SimpleNamespace(return_value=end)

    monkeypatch.setattr(Groups, "_trainer", lambda self, count: SimpleNamespace(fit=fit))
    usual: dict[str, Any] = {
        "worker": dict,
        "payload": {},
        "workers": Workers.exactly(2),
        "resumable": resumable(),
        "has_gpus": lambda: False,
        "progress": Screen(),
        "notes": "",
        "told": Told(),
        "max_failures": 2,
        "step_timeout_seconds": 30.0,
        "resize_seconds": 3600.0,
        "patience_seconds": 60.0,
        "verbose": False,
    }
    usual["demand"] = SimpleNamespace(want=lambda count, on_gpu: None)
    return Groups(link=link or Link(), **{**usual, **settings})  # type: ignore[arg-type]


def said(run: Groups) -> list[str]:
    """What the user read."""
    assert isinstance(run.progress, Screen)
    return run.progress.lines


def waited_for(run: Groups) -> list[str]:
    assert isinstance(run.progress, Screen)
    return run.progress.waits


def failure(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("", dict(enumerate(errors)))


class TestRestarts:
    def test_failures_without_a_newer_checkpoint_are_limited(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ends = [failure(OSError("disk")) for _ in range(9)]
        run = groups(ends, monkeypatch)
        with pytest.raises(RunFailedError, match="rank 0: OSError: disk"):
            run.to_the_end()
        assert len(ends) == 6
        assert said(run)[1] == "restarting from the start (1 restarts left)"

    def test_a_run_that_gets_on_between_failures_is_not_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten lost nodes in two weeks are no reason to end."""
        ends = [*(failure(OSError("gone")) for _ in range(10)), DONE]
        saved = itertools.count(100, 50)
        run = groups(ends, monkeypatch, resumable=resumable(lambda: next(saved)))
        assert run.to_the_end() == DONE
        assert "restarting from the last checkpoint (1 restarts left)" in said(run)

    @pytest.mark.parametrize(
        ("error", "kind"),
        [(Mistake("--k 0"), Mistake), (KeyError("loss"), RunFailedError)],
    )
    def test_what_a_restart_would_not_help_is_not_tried_again(
        self, error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ends = [failure(error), DONE]
        with pytest.raises(kind):
            groups(ends, monkeypatch).to_the_end()
        assert ends == [DONE]

    def test_work_without_checkpoints_is_begun_anew_and_ends_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An evaluation: what it returns is its own matter, and nothing could be gone on with."""
        run = groups([failure(OSError("disk")), [3, 4]], monkeypatch, resumable=None)
        assert run.to_the_end() == [3, 4]
        assert said(run)[1] == "restarting from the start (1 restarts left)"
        link, never, told = Link(look_at=None), threading.Event(), Told()
        watch = GroupWatch(link, 1, 2, told, lambda: True, 0.0, Screen(), can_stop=False)  # type: ignore[arg-type]
        told.set()
        with pytest.raises(Terminated, match=r"^stopped on SIGTERM$"):
            watch.until(never)
        assert link.asked == []
        full = Link(rooms=itertools.repeat(0))
        with pytest.raises(RunFailedError, match=r"no room for 2 workers .*, and start it again$"):
            groups([], monkeypatch, full, resumable=None, patience_seconds=0.1).to_the_end()

    def test_a_run_that_waits_for_room_between_groups_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said_at: list[int] = []
        rooms = iter([0, 2, 0, 0, 0, 2])
        link = Link(rooms=rooms)  # type: ignore[arg-type]
        waiting = replace(resumable(), waiting=lambda: said_at.append(len(link.begun)))
        run = groups([failure(OSError("disk")), DONE], monkeypatch, link, resumable=waiting)
        assert run.to_the_end() == DONE
        assert said_at == [1, 1, 1]  # not before the first: there is no run yet

    def test_a_relay_that_is_gone_is_no_crash(self, monkeypatch: pytest.MonkeyPatch) -> None:
        deaf = Link(look_at=None)
        assert groups([failure(GLOO), DONE], monkeypatch, deaf).to_the_end() == DONE

        class Dead(Link):
            def begin(self, group: int, count: int) -> None:
                raise ray.exceptions.RayActorError

        with pytest.raises(RunFailedError, match="worker process died"):
            groups([DONE], monkeypatch, Dead()).to_the_end()

    def test_the_relays_verdict_is_the_cause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        verdict = "rank 1 (pid 101 on a) hangs after step 7: no progress"
        link = Link(Look(BEATS, verdict, leaving=False))
        run = groups([failure(GLOO), DONE], monkeypatch, link)
        assert run.to_the_end() == DONE
        assert f"failed: {verdict}" in said(run)

    def test_a_killed_node_is_named_and_the_new_number_of_workers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What gloo has to say of it is: Connection reset by peer."""
        nodes = [
            {"NodeID": "n0", "Alive": True, "NodeManagerAddress": "10.0.0.1"},
            {"NodeID": "n1", "Alive": False, "NodeManagerAddress": "10.0.0.2"},
        ]
        monkeypatch.setattr("cluster.workers.failures.ray.nodes", lambda: nodes)
        link = Link(rooms=itertools.chain([2], itertools.repeat(1)))
        run = groups([failure(GLOO, GLOO), DONE], monkeypatch, link, workers=Workers(1, 2))
        assert run.to_the_end() == DONE
        assert said(run) == [
            "failed: node 10.0.0.2 went away, and with it rank 1 (pid 1)",
            "restarting from the start (1 restarts left)",
            "going on with 1 worker",
        ]
        assert link.begun == [(1, 2), (2, 1)]
        assert lost_nodes(BEATS[:1], patiently=False) == ""

    def test_the_autoscaler_is_asked_for_what_is_missing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For all of the range while a run waits, for the rest while it runs, then for nothing."""
        asked: list[int] = []
        link = Link(rooms=itertools.chain([0, 2, 2], itertools.repeat(4)))
        run = groups(
            [failure(GLOO), DONE],
            monkeypatch,
            link,
            workers=Workers(2, 4, waits=True),
            demand=SimpleNamespace(want=lambda count, on_gpu: asked.append(count)),
        )
        monkeypatch.setattr("cluster.workers.elastic.LOOK_SECONDS", 0.01)
        assert run.to_the_end() == DONE
        assert link.begun == [(1, 2), (2, 4)]
        assert [count for count, _ in itertools.groupby(asked)] == [4, 2, 0]

    def test_gpus_that_come_later_are_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A range whose GPU nodes are away at the start must not stay on CPUs for good."""
        seen = iter([False, True])
        run = groups([failure(GLOO), DONE], monkeypatch, has_gpus=lambda: next(seen))
        run.to_the_end()
        assert run.unit == "GPU"


def test_condemned_ranks_that_do_not_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that hangs after the others have left hears nothing, and the run stood for ever."""
    monkeypatch.setattr(group_watch, "CONDEMNED_SECONDS", 0.0)
    monkeypatch.setattr(group_watch, "LOOK_SECONDS", 0.0)
    over, ended = threading.Event(), []

    class Ending(Link):
        def end(self, beat: Beat) -> None:
            ended.append(beat.rank)
            over.set()

    link = Ending(Look(BEATS, "rank 1 hangs", leaving=False, remaining=BEATS[1:]))
    watch = GroupWatch(link, 1, 2, Told(), lambda: False, 9.0, Screen(), can_stop=False)  # type: ignore[arg-type]
    watch.until(over)
    assert ended == [beat.rank for beat in BEATS[1:]]


class TestEnds:
    @pytest.mark.parametrize(
        ("number", "name", "status"),
        [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)],
    )
    def test_a_signal_ends_a_run_with_its_checkpoint(
        self, number: int, name: str, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link, told = Link(), Told()

        def end_once_asked() -> dict[str, Any]:
            while len(link.asked) < 3:  # again and again: one may be lost
                time.sleep(0.01)
            return STOPPED

        run = groups([end_once_asked], monkeypatch, link, told=told)
        threading.Timer(0.1, told.hear, [number]).start()
        with pytest.raises(Terminated, match=f"stopped on {name} after step 7, with a") as end:
            run.to_the_end()
        assert end.value.status == status
        assert said(run)[0].startswith("stopping: a checkpoint is written first")

    def test_before_any_worker_runs_there_is_nothing_to_wait_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told, never = Told(), threading.Event()
        for nobody in (Look((), None, leaving=False), None):
            run = groups([never.wait], monkeypatch, Link(look_at=nobody), told=told)
            told.hear(signal.SIGTERM)
            with pytest.raises(Terminated, match="before 2 workers had started"):
                run.to_the_end()
        never.set()

    def test_a_group_that_the_cluster_never_starts_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(group_watch, "START_SECONDS", 0.1)
        monkeypatch.setattr(group_watch, "REMIND_SECONDS", 0.02)
        monkeypatch.setattr(group_watch, "is_waiting_for_place", lambda: True)
        never = threading.Event()
        run = groups([never.wait], monkeypatch, Link(look_at=Look((), None, leaving=False)))
        with pytest.raises(RunFailedError, match="did not start 2 workers within") as raised:
            run.to_the_end()
        never.set()
        assert not raised.value.retry
        assert "waiting: the cluster has no place for 2 workers" in waited_for(run)
        assert str(raised.value).endswith("; go on with --resume")

    def test_workers_that_load_slowly_are_no_reason_to_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a machine that other jobs starve, torch took them more than the ten minutes."""
        monkeypatch.setattr(group_watch, "START_SECONDS", 0.0)
        monkeypatch.setattr(group_watch, "LOOK_SECONDS", 0.0)
        monkeypatch.setattr(group_watch, "is_waiting_for_place", lambda: False)
        looked, never = threading.Event(), threading.Event()

        class Nobody(Link):
            def look(self, group: int, count: int) -> Look | None:
                if self.looks == 3:
                    looked.set()
                self.looks += 1
                return Look((), None, leaving=False)

            looks = 0

        def late() -> dict[str, Any]:
            looked.wait()
            return DONE

        assert groups([late], monkeypatch, Nobody()).to_the_end() == DONE
        monkeypatch.setattr(group_watch, "LOADING_SECONDS", 0.1)
        run = groups([never.wait], monkeypatch, Nobody())
        with pytest.raises(RunFailedError, match="2 workers have a place, but none was heard of"):
            run.to_the_end()
        never.set()

    def test_what_is_waited_for_is_told_until_it_trains(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link = Link(look_at=None)
        starting = tuple(replace(beat, phase="starting") for beat in BEATS)
        looks = [
            Look((), None, False),
            Look(starting[:1], None, False),
            Look(starting, None, False),
        ]

        def end_once_told() -> dict[str, Any]:
            for look in [*looks, CALM]:
                link.look_at = look
                time.sleep(0.1)
            return DONE

        run = groups([end_once_told], monkeypatch, link)
        run.to_the_end()
        assert waited_for(run) == [
            "starting: 0 of 2 workers up, each loads torch first",
            "starting: 1 of 2 workers up, each loads torch first",
            "starting: 2 workers up, reading data and building the model",
        ]

    def test_a_node_that_leaves_costs_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        link = Link(Look(BEATS, None, leaving=True))

        def end_once_asked() -> dict[str, Any]:
            while not link.asked:
                time.sleep(0.01)
            link.look_at = CALM
            return STOPPED

        run = groups([end_once_asked, DONE], monkeypatch, link, max_failures=0)
        assert run.to_the_end() == DONE
        assert "taken away (SIGTERM): checkpoint of step 7" in said(run)[0]

    def test_a_range_grows_once_there_is_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        link = Link(rooms=itertools.chain([1, 1], itertools.repeat(1)))

        def end_once_asked() -> dict[str, Any]:
            while not link.asked:
                time.sleep(0.01)
            link.rooms = itertools.repeat(2)
            return STOPPED

        settings = {"workers": Workers(1, 2), "resize_seconds": 0.01}
        run = groups([end_once_asked, DONE], monkeypatch, link, **settings)
        assert run.to_the_end() == DONE
        assert link.begun == [(1, 1), (2, 2)]
        assert said(run) == ["going on with 2 workers"]

    def test_a_second_ctrl_c_ends_at_once(self) -> None:
        never = threading.Event()
        with terminations() as told, pytest.raises(KeyboardInterrupt):
            link = Link()
            watch = GroupWatch(link, 1, 2, told, lambda: False, 60.0, Screen())  # type: ignore[arg-type]
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
            threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
            watch.until(never)
        assert told.by == "Ctrl-C" and link.asked

    def test_ctrl_c_is_heard_in_a_shells_background_too(self) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with terminations() as told:
                os.kill(os.getpid(), signal.SIGINT)
                assert told.wait(10)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)

    def test_what_a_thread_raises_is_raised_where_it_is_waited_for(self) -> None:
        def fail() -> None:
            raise OSError("disk")

        thread = InThread(fail)
        assert thread.over.wait(10)
        with pytest.raises(OSError, match="disk"):
            thread.result()


class TestRoom:
    def wait(
        self,
        rooms: list[int | None],
        workers: Workers,
        told: Told | None = None,
        patience_seconds: float = 60.0,
        hoped: int = 0,
        screen: Screen | None = None,
    ) -> int:
        looks: Callable[[], int | None] = itertools.chain(
            rooms, itertools.repeat(rooms[-1])
        ).__next__
        return wait_for_room(
            workers, 2048, "CPU", screen or Screen(), patience_seconds, looks, told or Told(), hoped
        )

    def test_the_most_that_has_room_and_divides_the_batch(self) -> None:
        range_ = Workers(2, 8)
        assert [choose(range_, room, 2048) for room in range(10)] == [
            *(None, None, 2, 2, 4, 4, 4, 4, 8, 8)
        ]
        assert choose(Workers(3, 3), 8, 2048) is None
        check_divides(range_, 2048)
        with pytest.raises(ValueError, match=r"--workers 3: .*2048"):
            check_divides(Workers(3, 3), 2048)

    def test_what_comes_back_a_moment_later_is_waited_for(self) -> None:
        # Two looks agree; the least, 1, is not settled for.
        assert self.wait([0, 1, 2, 2, 2], Workers(1, 4)) == 2

    def test_growing_waits_for_the_room_that_was_seen(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The old group's workers are told free one by one, now and then with a pause."""
        assert self.wait([1, 1, 1, 2, 2], Workers(1, 4), hoped=2) == 2
        # The node went away again: fewer start, after a while.
        monkeypatch.setattr("cluster.workers.elastic.SETTLE_SECONDS", 0.0)
        assert self.wait([1], Workers(1, 4), hoped=2) == 1

    def test_patience_ends_and_says_what_is_there(self) -> None:
        with pytest.raises(RunFailedError, match=r"no room for 2 workers in 0 s .*1 CPUs are free"):
            self.wait([1], Workers.exactly(2), patience_seconds=0.05)
        with pytest.raises(RunFailedError, match="the cluster does not answer"):
            self.wait([None], Workers(1, 2), patience_seconds=0.05)

    @pytest.mark.parametrize("workers", [Workers.exactly(4), Workers(3, 8)], ids=str)
    def test_waiting_is_told_and_can_be_ended(
        self, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also of a fixed number, where Ray itself would wait for ever and say nothing."""
        monkeypatch.setattr("cluster.workers.elastic.NOTICE_SECONDS", 0.0)
        told, screen = Told(), Screen()
        threading.Timer(0.2, told.hear, [signal.SIGINT]).start()
        with pytest.raises(Terminated, match=r"Ctrl-C while waiting for . workers: 2 CPUs are"):
            self.wait([2], workers, told, screen=screen)
        assert screen.waits == [f"waiting for {workers.least} workers: 2 CPUs are free"]
