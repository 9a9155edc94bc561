"""The dashboard of servers: what it asks for is what a server tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundle.made import make_bundle
from tests.monitoring.conftest import needs
from tests.monitoring.two_ranks import Reader, free_port
from tests.serve.running import asked, running
from trainer.live.panels.requests import REQUESTS
from trainer.live.prometheus import Prometheus
from trainer.observe.declared import SERVER_METRICS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("served") / "B")


def ask_all(port: int) -> None:
    """Requests of several statuses."""
    for body in ({"user": "u3"}, {"user": "nobody"}, {"k": "many"}):
        asked(port, "POST", "/recommend", body)


def test_a_server_tells_every_metric_that_is_declared(place: Path) -> None:
    with running(place) as (port, _):
        ask_all(port)
        told = asked(port, "GET", "/metrics")[1]
    for metric in SERVER_METRICS:
        first = f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name
        label = "" if metric.label is None else f'{{{metric.label}="'
        assert any(line.startswith(f"{first}{label}") for line in told.splitlines()), metric.name


@pytest.mark.slow
@needs("prometheus")
def test_every_panel_has_data(place: Path, tmp_path: Path) -> None:
    """A real Prometheus reads a real server."""
    with running(place) as (port, _):
        scrape = {"job_name": "s", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
        prometheus = Prometheus(json.dumps(config), tmp_path / "prometheus", free_port())
        try:
            reader = Reader(prometheus, lambda: "")
            for panel in REQUESTS.panels:
                for query in panel.queries:
                    text = query.expr.replace("$instance", ".*")
                    text = text.replace("$__rate_interval", "15s")

                    def has_value(text: str = text) -> bool:
                        ask_all(port)
                        return any(s["value"][1] != "NaN" for s in reader.query(text))

                    reader.wait(has_value, seconds=60)
        finally:
            prometheus.close()
