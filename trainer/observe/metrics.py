"""The metrics of a rank (declared.py has their table), and the endpoint it serves them on.

The one file that knows prometheus_client. A rank owns one `RankMetrics`; times measured on the
host are noted at each step, values that live on a device are kept there (step_values.py) and read
every `log_every_steps` steps with one device-to-host copy (recorder.py).

Rank, run and host are labels that service discovery adds to a target (cluster/service_discovery),
so no series here carries them; the labels below are few and bounded.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as TEXT_FORMAT

from trainer.base.address import EVERY_ADDRESS, reachable_address, with_port
from trainer.base.mistake import Mistake
from trainer.observe.declared import METRICS, Metric
from trainer.observe.http import Page, PortTakenError, SmallServer

# From 1 ms to 100 s: a step of any model on any device falls inside.
SECONDS_BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
LONGEST_LINGER_SECONDS = 20.0
PORT_PATIENCE_SECONDS = 10.0
"""A worker that is started anew waits so long for its predecessor to let go of the port."""
AnyMetric = TypeVar("AnyMetric", Counter, Gauge, Histogram)


class _Step(NamedTuple):
    step: int
    ended: float
    """Unix time."""
    seconds: float
    data_wait_seconds: float
    examples: int


class MetricSet:
    """Values of a table of metrics, in a registry of its own.

    An undeclared name, or a label where none is declared, is our own bug and raises KeyError or
    AssertionError.
    """

    def __init__(self, declared: Sequence[Metric]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.latest: dict[str, float] = {}
        """Totals of the counters, and newest values of the histograms, that have no label."""
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in declared:
            labels = (metric.label,) if metric.label else ()
            match metric.kind:
                case "counter":
                    made = Counter(metric.name, metric.help, labels, registry=self.registry)
                    self._counters[metric.name] = made
                    if metric.label is None:
                        self.latest[metric.name] = 0.0
                case "gauge":
                    self._gauges[metric.name] = Gauge(
                        metric.name, metric.help, labels, registry=self.registry
                    )
                case "histogram":
                    self._histograms[metric.name] = Histogram(
                        metric.name,
                        metric.help,
                        labels,
                        registry=self.registry,
                        buckets=SECONDS_BUCKETS,
                    )
        # Of metrics with a label, by (name, value): looking one up costs as much as setting it.
        self._children: dict[tuple[str, str], Any] = {}

    def add(self, name: str, amount: float = 1.0, label: str | None = None) -> None:
        """Raise a counter."""
        self._of(self._counters[name], name, label).inc(amount)
        if label is None:
            self.latest[name] += amount

    def set(self, name: str, value: float, label: str | None = None) -> None:
        """Set a gauge."""
        self._of(self._gauges[name], name, label).set(value)

    def observe(self, name: str, value: float, label: str | None = None) -> None:
        """Put one value, in seconds, into a histogram."""
        self._of(self._histograms[name], name, label).observe(value)
        if label is None:
            self.latest[name] = value

    def _of(self, metric: AnyMetric, name: str, label: str | None) -> AnyMetric:
        """The metric itself, or its child for a label's value."""
        if label is None:
            return metric
        child = self._children.get((name, label))
        if child is None:
            child = self._children[name, label] = metric.labels(label)
        return child

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class RankMetrics(MetricSet):
    """This rank's values of every metric in `METRICS`. A context manager: `serve` begins the
    endpoint, `close` ends it."""

    def __init__(self) -> None:
        super().__init__(METRICS)
        self._steps: deque[_Step] = deque()
        self._publishing = threading.Lock()
        self._server: SmallServer | None = None
        for since_start in ("last_step", "progress", "checkpoint"):
            self.set(f"tandem_{since_start}_timestamp_seconds", time.time())

    def observe_step(
        self, step: int, seconds: float, data_wait_seconds: float, examples: int
    ) -> None:
        """One finished step, in host times; waits for no device.

        Only noted here: five metrics a step, each found anew in a cold cache, cost 0.2 % of a
        step of 1024 rows. `render` publishes them, so no reader sees less.
        """
        self._steps.append(_Step(step, time.time(), seconds, data_wait_seconds, examples))

    def publish_steps(self) -> None:
        """Publish the steps noted so far. From any thread: each step is taken once."""
        with self._publishing:
            while self._steps:
                noted = self._steps.popleft()
                self.set("tandem_step", noted.step)
                self.set("tandem_last_step_timestamp_seconds", noted.ended)
                self.add("tandem_steps_total")
                self.add("tandem_examples_total", noted.examples)
                self.observe("tandem_step_seconds", noted.seconds)
                self.observe("tandem_step_phase_seconds", noted.data_wait_seconds, "data_wait")

    def render(self) -> bytes:
        """Prometheus' text format."""
        self.publish_steps()
        self.set("tandem_clock_timestamp_seconds", time.time())
        return super().render()

    def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        towards: str | None = None,
    ) -> str:
        """Serve /metrics from a thread of its own; returns "host:port" as scrapers reach it.

        Args:
            host: address listened on.
            port: 0 takes any free one.
            advertise: address that scrapers are told; None: `host`, or where that is every
                address, this machine's.
            towards: a machine that this one reaches by the network that counts.

        Raises:
            Mistake: where host or port cannot be listened on.
        """
        assert self._server is None, "already serving"
        self._server = self._listen(host, port)
        public = reachable_address(towards) if host in EVERY_ADDRESS else host
        return with_port(advertise or public, self._server.port)

    def _listen(self, host: str, port: int) -> SmallServer:
        page = Page(TEXT_FORMAT, self.render)
        pages = {"/": page, "/metrics": page}
        deadline = time.monotonic() + PORT_PATIENCE_SECONDS
        while True:
            try:
                return SmallServer(
                    host, port, pages, "tandem-metrics", "--metrics.host, --metrics.port"
                )
            except PortTakenError as error:
                if time.monotonic() > deadline:
                    raise Mistake(
                        f"--metrics.port {port} is taken on this machine: choose another, or 0 "
                        "for any free one"
                    ) from error
                time.sleep(0.2)

    def linger(self) -> None:
        """Where someone scrapes regularly, wait until the values as they are now are read, too.

        For the end of a run, whose last values would else be lost: at most the usual time between
        two scrapes, and LONGEST_LINGER_SECONDS.
        """
        if self._server is None:
            return
        before = self._server.served("/metrics")
        now = time.monotonic()
        longest = min(before.interval_seconds * 1.5, LONGEST_LINGER_SECONDS)
        deadline = max(before.last, now) + longest
        if before.count < 2 or now - before.last > 2 * longest:
            return
        while time.monotonic() < deadline and self._server.served("/metrics") == before:
            time.sleep(0.05)

    def close(self) -> None:
        """End the endpoint; the values stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def __enter__(self) -> "RankMetrics":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
