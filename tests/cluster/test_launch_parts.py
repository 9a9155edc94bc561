"""What launching is made of, without starting Ray: workers, causes, pulses, discovery, relay."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from typing import Any
from unittest.mock import Mock

import pytest
import ray
import ray.exceptions
from ray.train import ControllerError, WorkerGroupError

from cluster.workers.counts import Resources, Workers, default_workers
from cluster.workers.failures import RunFailedError, first_cause, lost_nodes
from cluster.workers.options import LaunchOptions
from cluster.workers.pulses import Beat
from cluster.workers.ray_workers import has_gpus
from cluster.workers.service_discovery import ReachableTargets, ServiceDiscovery
from cluster.workers.session import held_errors, join_message, ray_session
from trainer.base.mistake import Mistake
from trainer.base.usage import UsageError
from trainer.observe.http import PAGE_SECONDS

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
        assert Workers.parse("2..8") == Workers(2, 8, waits=True)
        assert [str(Workers.parse(text)) for text in ("4", "2..8", "4..4")] == ["4", "2..8", "4..4"]
        assert str(Workers.parse("2..8")) == "2..8"

    @pytest.mark.parametrize("text", ["0", "-1", "8..2", "two", "2..", "2-8", "", "0..0", "-2..3"])
    def test_anything_else_is_wrong_usage_and_shown_as_typed(self, text: str) -> None:
        with pytest.raises(UsageError) as raised:
            Workers.parse(text)
        assert str(raised.value).startswith(f"--workers {text.partition('..')[0]}")
        assert text in str(raised.value) or text == "0..0"

    def test_more_than_this_machine_can_hold_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cluster.workers.counts.usable_memory_bytes", lambda: 8 * 2**30)
        Workers.parse("20").check_fits_here()
        for text in ("1000", "1..1000"):
            with pytest.raises(Mistake, match=f"--workers {text}: .*at most 20"):
                Workers.parse(text).check_fits_here()
        monkeypatch.setattr("cluster.workers.counts.usable_memory_bytes", lambda: 2**28)
        Workers.exactly(1).check_fits_here()

    def test_more_than_the_cluster_has_is_refused_not_waited_for(self) -> None:
        Workers.parse("8..16").check_fits(Resources(cpus=4, gpus=0), "auto")  # nodes may come
        with pytest.raises(ValueError, match=r"--workers 8: the cluster has 4 CPUs"):
            Workers.parse("8").check_fits(Resources(cpus=4, gpus=0), "auto")
        with pytest.raises(ValueError, match="2 GPUs"):
            Workers.parse("4").check_fits(Resources(cpus=64, gpus=2), "auto")

    def test_defaults_are_gpus_or_half_the_cpus(self) -> None:
        for cpus, gpus, count in ((64, 8, 8), (8, 0, 4), (1, 0, 1)):
            assert default_workers(Resources(cpus, gpus), "auto") == Workers.exactly(count)

    def test_gpus_that_are_asked_for_are_never_replaced_by_cpus(self) -> None:
        none_yet = Resources(cpus=4, gpus=0)
        with pytest.raises(Mistake, match=r"--device gpu: the cluster has no GPU; .* 1\.\.8"):
            default_workers(none_yet, "gpu")
        with pytest.raises(Mistake, match=r"--workers 2: the cluster has 0 GPUs"):
            Workers.parse("2").check_fits(none_yet, "gpu")
        Workers.parse("2..2").check_fits(none_yet, "gpu")
        assert has_gpus(none_yet, Workers.parse("2..2"), "gpu")


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
        assert cause.retry and not cause.is_consequence

    def test_a_process_that_nobody_saw_end_may_have_gone_with_its_node(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ray may tell of the actor seconds before it tells of the node."""
        cause = first_cause(WorkerGroupError("", {1: Died("The actor is unavailable: RpcError")}))
        assert isinstance(cause, RunFailedError) and cause.is_consequence
        node = {"NodeID": "n1", "NodeManagerAddress": "10.0.0.2"}
        told = iter([True, True, False])
        monkeypatch.setattr(
            "cluster.workers.failures.ray.nodes", lambda: [{**node, "Alive": next(told)}]
        )
        beat = Beat(1, 7, "training", 7, 9, 1, "pid 7", "n1")
        lost = lost_nodes([beat], cause.is_consequence)
        assert lost == "node 10.0.0.2 went away, and with it rank 1 (pid 7)"

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
