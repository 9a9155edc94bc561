"""Every metric Tandem serves, declared in one table, and the endpoint each rank serves them on.

The one file that knows prometheus_client. A rank owns one `RankMetrics`; times measured on the
host go in at each step, values that live on a device are summed there by `DeviceMeans` and read
every `log_every_steps` steps with one device-to-host copy.

Rank, run and host are labels that service discovery adds to a target (cluster/service_discovery),
so no series here carries them; the labels below are few and bounded.
"""

import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

# From 1 ms to 100 s: a step of any model on any device falls inside.
SECONDS_BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
REQUEST_TIMEOUT_SECONDS = 5.0
MAX_CONNECTIONS = 16


@dataclass(frozen=True)
class Metric:
    """One declared metric; `label` names the one label it may carry, of a few bounded values."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str | None = None


METRICS = (
    # Throughput and time
    Metric("tandem_steps_total", "counter", "Optimizer steps this rank has finished."),
    Metric("tandem_examples_total", "counter", "Training rows this rank has trained on."),
    Metric("tandem_step_seconds", "histogram", "Wall time of a training step."),
    Metric(
        "tandem_step_phase_seconds",
        "histogram",
        "Wall time of a part of a step: data_wait, forward, backward, optimizer, communication.",
        label="phase",
    ),
    # Learning
    Metric("tandem_loss", "gauge", "Mean training loss since the last reading, of all ranks."),
    Metric(
        "tandem_loss_part",
        "gauge",
        "The loss's own terms and score statistics, by name, mean since the last reading.",
        label="part",
    ),
    Metric(
        "tandem_gradient_norm", "gauge", "L2 norm of a group's gradient: towers.", label="group"
    ),
    Metric(
        "tandem_learning_rate", "gauge", "Learning rate of a group: tables, towers.", label="group"
    ),
    Metric("tandem_embedding_norm", "gauge", "Mean L2 norm of a table's rows.", label="table"),
    Metric(
        "tandem_table_rows_touched",
        "gauge",
        "Different rows of a table that one step looked up, mean since the last reading.",
        label="table",
    ),
    Metric(
        "tandem_evaluation",
        "gauge",
        "Last value of an evaluation metric, as ndcg@20.",
        label="metric",
    ),
    # Where the run stands
    Metric("tandem_step", "gauge", "Global step the run has reached."),
    Metric("tandem_epoch", "gauge", "Epoch in training, from 0, with its fraction."),
    Metric("tandem_world_size", "gauge", "Ranks that train together."),
    Metric("tandem_restarts_total", "counter", "Times the run was started anew after a failure."),
    Metric("tandem_rows_dropped_total", "counter", "Rows read but not trained on.", label="reason"),
    # Checkpoints
    Metric("tandem_checkpoint_seconds", "histogram", "Time a step waited for a checkpoint."),
    Metric(
        "tandem_checkpoint_timestamp_seconds", "gauge", "Unix time of the newest whole checkpoint."
    ),
    Metric("tandem_checkpoint_failures_total", "counter", "Checkpoints that could not be written."),
    # Memory
    Metric("tandem_device_memory_bytes", "gauge", "Device memory that tensors of this rank hold."),
)


class DeviceMeans:
    """Weighted running sums of 0-d tensors, kept on their device until `read`.

    `add` never waits for the device. `read` does, once: it is for every `log_every_steps` steps.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one observation of each value; tensors are 0-d and are not kept."""
        for name, value in values.items():
            detached = value.detach().float()
            if name in self._sums:
                self._sums[name] += detached
                self._counts[name] += 1
            else:
                self._sums[name] = detached.clone()
                self._counts[name] = 1

    def read(self) -> dict[str, float]:
        """The means since the last call, and start anew. One device-to-host sync."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()  # the sync
        counts = list(self._counts.values())
        means = {
            name: total / count for name, total, count in zip(self._sums, sums, counts, strict=True)
        }
        self._sums.clear()
        self._counts.clear()
        return means


class RankMetrics:
    """This rank's values of every metric in `METRICS`, in a registry of its own.

    An undeclared name, or a label where none is declared, is our own bug and raises KeyError or
    AssertionError. A context manager: `serve` begins the endpoint, `close` ends it.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in METRICS:
            labels = (metric.label,) if metric.label else ()
            match metric.kind:
                case "counter":
                    made = Counter(metric.name, metric.help, labels, registry=self.registry)
                    self._counters[metric.name] = made
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
        self._server: MetricsServer | None = None

    def add(self, name: str, amount: float = 1.0, label: str | None = None) -> None:
        """Raise a counter."""
        counter = self._counters[name]
        (counter.labels(label) if label is not None else counter).inc(amount)

    def set(self, name: str, value: float, label: str | None = None) -> None:
        """Set a gauge."""
        gauge = self._gauges[name]
        (gauge.labels(label) if label is not None else gauge).set(value)

    def observe(self, name: str, value: float, label: str | None = None) -> None:
        """Put one value, in seconds, into a histogram."""
        histogram = self._histograms[name]
        (histogram.labels(label) if label is not None else histogram).observe(value)

    def observe_step(self, seconds: float, data_wait_seconds: float, examples: float) -> None:
        """One finished step, in host times; waits for no device."""
        self.add("tandem_steps_total")
        self.add("tandem_examples_total", examples)
        self.observe("tandem_step_seconds", seconds)
        self.observe("tandem_step_phase_seconds", data_wait_seconds, "data_wait")

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve /metrics from a thread of its own; returns "host:port" as scrapers reach it."""
        assert self._server is None, "already serving"
        self._server = MetricsServer(self, host, port)
        return self._server.address

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


class MetricsServer:
    """GET /metrics over HTTP; slow, broken and surplus connections are cut, training never waits.

    `address` is what a scraper on another machine is told: where `host` is every address
    (0.0.0.0), this machine's name in its place.
    """

    def __init__(self, metrics: RankMetrics, host: str, port: int) -> None:
        self._http = _LimitedHTTPServer((host, port), _handler_of(metrics))
        public = socket.gethostbyname(socket.gethostname()) if host == "0.0.0.0" else host
        self.address = f"{public}:{self._http.server_address[1]}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.1,), name="tandem-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _LimitedHTTPServer(ThreadingHTTPServer):
    """At most MAX_CONNECTIONS at a time: further ones are closed unanswered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        """A client that broke off is not worth a traceback in the run's output."""


def _handler_of(metrics: RankMetrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_SECONDS

        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/", "/metrics"):
                self.send_error(404)
                return
            body = metrics.render()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not news."""

    return Handler
