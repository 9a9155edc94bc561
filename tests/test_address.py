"""Addresses that others are told, and where ranks of several machines meet."""

import os
import socket
from typing import Any

import pytest

from trainer.base import address
from trainer.base.address import interface_of, interfaces, is_loopback, reachable_address, with_port
from trainer.base.mistake import Mistake
from trainer.config.metrics_section import MetricsConfig
from trainer.distributed.ranks import choose_interface
from trainer.observe.metrics import RankMetrics


@pytest.fixture(autouse=True)
def names_mislead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Debian, and in containers whose name nobody knows."""
    monkeypatch.setattr("socket.gethostbyname", lambda name: "127.0.1.1")
    monkeypatch.setattr("socket.gethostname", lambda: "nowhere-7")

    def unknown(*arguments: Any) -> Any:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr("socket.getfqdn", unknown)
    monkeypatch.setattr("socket.gethostbyaddr", unknown)


def test_this_machine_is_reached_by_an_interface_of_its_own() -> None:
    mine = {its for _, its in interfaces()}
    assert "127.0.0.1" in mine
    for towards in (None, "localhost", "127.0.0.1", "no.such.name.invalid", "ü..de", "\x85"):
        assert reachable_address(towards) in mine
    assert not is_loopback(reachable_address()) or mine == {"127.0.0.1"}


def test_a_network_without_a_way_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_source_address", lambda target: None)
    monkeypatch.setattr(
        address, "interfaces", lambda: iter([("lo", "127.0.0.1"), ("eth1", "10.77.3.2")])
    )
    assert reachable_address("10.77.3.1") == "10.77.3.2"
    assert interface_of("10.77.3.2") == "eth1"
    assert interface_of("10.9.9.9") is None
    monkeypatch.setattr(address, "interfaces", lambda: iter([("lo", "127.0.0.1")]))
    assert reachable_address() == "127.0.0.1"


def test_loopback_is_known_in_all_its_forms() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.1.1", "localhost", "::1")))
    assert not any(map(is_loopback, ("10.0.0.1", "fe80::1%eth0", "head", "0.0.0.0")))
    assert with_port("10.0.0.1", 80) == "10.0.0.1:80"
    assert with_port("::1", 80) == "[::1]:80"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_ranks_never_tell_others_an_address_of_their_own_alone(host: str) -> None:
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with RankMetrics() as metrics:
        told, _, port = metrics.serve(host).rpartition(":")
        assert told == reachable_address()
        with socket.create_connection((told, int(port)), timeout=5):  # IPv4, also where "::"
            pass
    with RankMetrics() as metrics:
        assert metrics.serve(host, advertise="gateway").startswith("gateway:")


def test_an_ipv6_address_is_bracketed() -> None:
    with RankMetrics() as metrics:
        assert metrics.serve("::1").startswith("[::1]:")


@pytest.mark.parametrize("host", ["192.0.2.77", "evil; rm", "nowhere.invalid", "a" * 100])
def test_a_host_that_cannot_be_listened_on_names_its_flag(host: str) -> None:
    with RankMetrics() as metrics, pytest.raises(Mistake, match=r"--metrics\.host") as raised:
        metrics.serve(host)
    assert host in str(raised.value) and "\n" not in str(raised.value)


def test_a_port_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.observe.metrics.PORT_PATIENCE_SECONDS", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with RankMetrics() as first, RankMetrics() as second:
        assert first.serve(port=port) == f"127.0.0.1:{port}"
        with pytest.raises(Mistake, match=f"--metrics.port {port} is taken"):
            second.serve(port=port)
        with pytest.raises(Mistake, match=r"--metrics\.port: cannot listen on 127\.0\.0\.1:70000"):
            second.serve(port=70_000)
    with RankMetrics() as again:  # what its predecessor let go of
        assert again.serve(port=port) == f"127.0.0.1:{port}"


@pytest.mark.parametrize("wrong", [{"port": -1}, {"port": 65_536}, {"host": ""}])
def test_the_config_knows_what_a_port_is(wrong: dict[str, Any]) -> None:
    with pytest.raises(Mistake, match=r"metrics\."):
        MetricsConfig(**wrong)


def test_gloo_meets_others_by_the_interface_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "to be put back at the end")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface("10.9.9.9")  # nobody's here
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    choose_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == interface_of("127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    choose_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
