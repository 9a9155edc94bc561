"""A real Prometheus reads two real ranks: panels, alerts, restarts. In order; a fault at a time."""

import random
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.monitoring.conftest import needs
from tests.monitoring.two_ranks import Scraped, announce, start_ranks
from trainer.live.panels import DASHBOARDS
from trainer.live.panels.panel import Query

pytestmark = [pytest.mark.slow, needs("prometheus"), pytest.mark.timeout(900)]
QUERIES = [
    pytest.param(query, id=f"{dashboard.uid}: {panel.title} {number}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    for number, query in enumerate(panel.queries)
    if panel.source == "tandem"
]


def filled_in(query: Query) -> str:
    """The query as Grafana sends it with all runs and ranks chosen."""
    text = query.expr.replace("$run", ".*").replace("$rank", ".*")
    return text.replace("$__rate_interval", "15s")


def test_every_rank_is_a_target_that_is_up(healthy: Scraped) -> None:
    targets = {(s["metric"]["run"], s["metric"]["rank"]) for s in healthy.query("up == 1")}
    assert targets == {("run-a", "0"), ("run-a", "1")}


def test_a_healthy_run_is_silent(healthy: Scraped) -> None:
    healthy.wait(lambda: bool(healthy.query("tandem_evaluation_seconds_count > 1")))
    time.sleep(10)
    assert healthy.query('max_over_time(ALERTS{alertstate="firing"}[10s])') == []


@pytest.mark.parametrize("query", QUERIES)
def test_every_panel_has_data(healthy: Scraped, query: Query) -> None:
    healthy.wait(lambda: bool(healthy.query(filled_in(query))), seconds=30)


def test_global_values_agree_with_the_ranks_own(healthy: Scraped) -> None:
    """One scrape of both ranks is not one moment, so values within some seconds are compared."""
    loss = healthy.value("max_over_time(max(tandem_loss)[5s:1s])")
    assert min(1.0, loss) > 0
    healthy.wait(
        lambda: abs(healthy.value("max(tandem_loss) - avg(tandem_rank_loss)")) < 1e-4, seconds=30
    )
    steps = healthy.value("max(tandem_step)")
    rows = healthy.value("sum(tandem_examples_total)")
    assert 0.5 * 128 * steps < rows <= 128 * (steps + 2)


def test_hostile_requests_leave_training_alone(healthy: Scraped) -> None:
    """Junk, floods and clients that say nothing: steps go on, and the rank can still be read."""
    address = healthy.query('up{rank="0"}')[0]["metric"]["instance"]
    host, port = address.split(":")
    before = healthy.value('tandem_steps_total{rank="0"}')
    silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(40)]
    started = time.monotonic()
    chance = random.Random(0)
    while time.monotonic() - started < 8:
        junk = chance.randbytes(chance.choice((1, 100, 70_000)))
        path = chance.choice((b"/metrics", b"/../../etc/passwd", b"/metrics?" + b"a" * 9000))
        try:
            with socket.create_connection((host, int(port)), timeout=1) as client:
                client.sendall(chance.choice((junk, b"GET " + path + b" HTTP/1.1\r\n\r\n")))
        except OSError:
            continue  # cut off, as it should be
    for client in silent:
        client.close()
    healthy.wait(lambda: bool(healthy.query(f'tandem_steps_total{{rank="0"}} > {before} + 5')))
    healthy.wait(lambda: not healthy.firing())


@pytest.fixture
def fault(healthy: Scraped, request: pytest.FixtureRequest) -> Iterator[None]:
    """A file in the run's folder for the length of the test."""
    file = healthy.folder / request.param
    file.touch()
    yield
    file.unlink()


@pytest.mark.parametrize("fault", ["starve"], indirect=True)
def test_a_starved_loader_is_told(healthy: Scraped, fault: None) -> None:
    healthy.wait(lambda: "TandemDataStarvation" in healthy.firing())


@pytest.mark.parametrize("fault", ["stall"], indirect=True)
def test_a_stall_is_told(healthy: Scraped, fault: None) -> None:
    """One rank hangs, the others wait for it; all still answer."""
    healthy.wait(lambda: "TandemStalled" in healthy.firing())
    healthy.wait(lambda: bool(healthy.query("sum(up) == 2")))


def test_a_rank_that_is_gone_is_told(healthy: Scraped) -> None:
    healthy.ranks[1].send_signal(signal.SIGSTOP)
    healthy.wait(lambda: "TandemRankLost" in healthy.firing())
    healthy.ranks[1].send_signal(signal.SIGCONT)
    healthy.wait(lambda: not healthy.firing())


def test_a_killed_and_restarted_rank_is_found_again(healthy: Scraped, data: str) -> None:
    """The same URL lists the new addresses; the run's restarts are counted."""
    old = {series["metric"]["instance"] for series in healthy.query("up")}
    for rank in reversed(healthy.ranks):
        rank.kill()
        rank.wait()
    healthy.wait(lambda: "TandemRunEndedEarly" in healthy.firing())
    healthy.ranks[:] = start_ranks(data, healthy.folder)
    announce(healthy)
    healthy.wait(lambda: bool(healthy.query("sum(up) == 2 and count(up) == 2")))
    new = {series["metric"]["instance"] for series in healthy.query("up")}
    assert not old & new
    assert healthy.value("max(tandem_restarts_total)") == 1
    healthy.wait(lambda: "TandemRestarted" in healthy.firing())
    healthy.wait(lambda: not healthy.firing(), seconds=300)
