"""Ray's and Tandem's metrics in one Prometheus: a real `tandem train` on a Ray of its own."""

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.runs import TrainRun
from tests.monitoring.conftest import needs
from tests.monitoring.test_scrape import filled_in
from tests.monitoring.two_ranks import Reader, free_port, hurried_rules
from trainer.live.panels import DASHBOARDS
from trainer.live.prometheus import Prometheus, make_config

pytestmark = [pytest.mark.slow, needs("prometheus"), pytest.mark.timeout(900)]
QUERIES = [
    query
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    for query in panel.queries
    if panel.source == "ray"
]
TOLD_BY = "TandemRestarted|TandemRankLost|TandemRunEndedEarly"
"""Which of them depends on how long the restart takes, beside the hurried rules' patience."""


@dataclass
class Watched(Reader):
    """A `tandem train` and the Prometheus that reads it."""

    run: TrainRun


@pytest.fixture(scope="module")
def reader(data: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A run that goes on and on, and the Prometheus of `tandem dashboard`."""
    folder = tmp_path_factory.mktemp("ray")
    flags = (
        "--training.epochs=100000",
        "--training.log-every-steps=20",
        "--checkpoint.every-steps=100",
    )
    with TrainRun(Path(data), folder / "run-r", *flags) as run:
        run.wait_for_text("training  ")
        found = re.search(r"metrics: (http\S+)", run.text)
        assert found is not None, run.text
        with hurried_rules(folder):
            config = make_config([found.group(1)], str(folder / "none.json"), interval_seconds=3)
            prometheus = Prometheus(config, folder / "prometheus", free_port())
        try:
            yield Watched(prometheus, lambda: run.text[-1500:], run)
        finally:
            prometheus.close()


def test_ranks_and_nodes_are_targets_of_one_prometheus(reader: Watched) -> None:
    reader.wait(lambda: len(reader.query('up{job="tandem"} == 1')) == 2, seconds=300)
    reader.wait(lambda: len(reader.query('up{job="ray"} == 1')) == 1)


def test_every_panel_of_ray_has_data(reader: Watched) -> None:
    assert len(QUERIES) == 3
    for query in QUERIES:
        reader.wait(lambda query=query: bool(reader.query(filled_in(query))))


def test_a_killed_rank_is_told_and_found_again_at_the_same_url(reader: Watched) -> None:
    """Ray ends the group and starts another: other processes, other ports, the same list."""
    reader.run.wait_for_checkpoint()
    assert reader.firing() == set()
    old = instances(reader, 'up{job="tandem"} == 1')
    os.kill(reader.run.worker_pids()[-1], signal.SIGKILL)
    reader.wait(lambda: len(instances(reader, 'up{job="tandem"} == 1') - old) == 2, seconds=450)
    told = f'max_over_time(ALERTS{{alertstate="firing",alertname=~"{TOLD_BY}"}}[15m])'
    reader.wait(lambda: bool(reader.query(told)))
    reader.wait(lambda: instances(reader, 'up{job="tandem"}').isdisjoint(old))
    assert reader.value("max(tandem_restarts_total)") == 1
    reader.wait(lambda: not reader.firing() & set(TOLD_BY.split("|")), seconds=300)


def instances(reader: Watched, query: str) -> set[str]:
    return {series["metric"]["instance"] for series in reader.query(query)}
