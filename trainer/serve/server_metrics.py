"""The metrics of a server, read from what they speak of whenever somebody looks."""

from __future__ import annotations

from collections.abc import Callable

from trainer.observe.declared import SERVER_METRICS
from trainer.observe.metrics import MetricSet
from trainer.serve.shelf import Shelf


class ServerMetrics(MetricSet):
    """Values of `SERVER_METRICS`. From any thread."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(SERVER_METRICS)
        self._shelf = shelf
        self.num_waiting: Callable[[], int] = lambda: 0
        """Requests in the queue, which the app sets."""

    def render(self) -> bytes:
        """Prometheus' text format."""
        self.set("tandem_serve_waiting", self.num_waiting())
        self.set("tandem_serve_bundle_step", self._shelf.current.manifest.step)
        self.set("tandem_serve_bundle_changes", self._shelf.changes)
        self.set("tandem_serve_bundle_failures", self._shelf.failures)
        return super().render()
