"""Ray's and Tandem's metrics in one Prometheus: a real `tandem train` on a Ray of its own."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.runs import TrainRun
from tests.monitoring.conftest import needs
from tests.monitoring.test_scrape import filled_in
from tests.monitoring.two_ranks import Reader, free_port
from trainer.live.panels import DASHBOARDS
from trainer.live.prometheus import Prometheus, make_config

pytestmark = [pytest.mark.slow, needs("prometheus"), pytest.mark.timeout(600)]
QUERIES = [
    query
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    for query in panel.queries
    if panel.source == "ray"
]


@pytest.fixture(scope="module")
def reader(data: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A run that goes on and on, and the Prometheus of `tandem dashboard`."""
    folder = tmp_path_factory.mktemp("ray")
    flags = ("--training.epochs=100000", "--training.log-every-steps=20")
    with TrainRun(Path(data), folder / "run-r", *flags) as run:
        run.wait_for_text("training  ")
        found = re.search(r"metrics: (http\S+)", run.text)
        assert found is not None, run.text
        config = make_config([found.group(1)], str(folder / "none.json"), interval_seconds=1)
        prometheus = Prometheus(config, folder / "prometheus", free_port())
        try:
            yield Reader(prometheus, lambda: run.text[-1500:])
        finally:
            prometheus.close()


def test_ranks_and_nodes_are_targets_of_one_prometheus(reader: Reader) -> None:
    reader.wait(lambda: len(reader.query('up{job="tandem"} == 1')) == 2)
    reader.wait(lambda: len(reader.query('up{job="ray"} == 1')) == 1)


def test_every_panel_of_ray_has_data(reader: Reader) -> None:
    assert len(QUERIES) == 3
    for query in QUERIES:
        reader.wait(lambda query=query: bool(reader.query(filled_in(query))))
