"""`tandem dashboard RUN`: Prometheus with our rules where it is installed, and the live page."""

from __future__ import annotations

import signal
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trainer.base.ranges import check_given, check_ranges
from trainer.base.screen import say
from trainer.files.storage import StoragePath, storage_path
from trainer.live.prometheus import HOW_TO_INSTALL, Prometheus, is_installed, make_config
from trainer.live.server import LivePage
from trainer.run.folder import RunFolder


@dataclass(frozen=True)
class DashboardArguments:
    """Watch a run: a live page on this machine, and Prometheus with Tandem's rules and alerts."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder or URI of the run, in training or finished."""
    port: int = 8090
    """Port of the live page."""
    host: str = "127.0.0.1"
    """Address that the live page listens on; it has no password."""
    prometheus: bool = True
    """Start Prometheus where it is installed."""
    prometheus_port: int = 9090
    """Port of Prometheus."""
    discovery: tuple[str, ...] = tuple(f"http://127.0.0.1:{9480 + n}/targets" for n in range(4))
    """URLs that list ranks; `tandem train` prints its own ("metrics: ...")."""
    ray_discovery: str = "/tmp/ray/prom_metrics_service_discovery.json"
    """File in which a Ray cluster on this machine lists its own metrics."""
    storage: str | None = None
    """Folder for Prometheus' data. Left out: RUN/.prometheus; where RUN is a URI, a temporary one,
    deleted at the end."""

    def __post_init__(self) -> None:
        check_given(self, ("host", "ray_discovery", "storage"), ("run",))
        check_ranges(self, port=(0, 65535), prometheus_port=(1, 65535))


def dashboard(arguments: DashboardArguments, stop: threading.Event | None = None) -> None:
    """Serve until Ctrl-C, SIGTERM or `stop`.

    Raises:
        Mistake: where the run does not exist or a port is taken.
    """
    run = storage_path(arguments.run)
    RunFolder(run).read_config()
    with ExitStack() as closing:
        live = LivePage(run, arguments.host, arguments.port)
        closing.callback(live.close)
        say(f"live page:  {live.url}")
        if arguments.prometheus and is_installed():
            folder = _prometheus_folder(arguments.storage, run, closing)
            config = make_config(list(arguments.discovery), arguments.ray_discovery)
            server = Prometheus(config, folder, arguments.prometheus_port)
            closing.callback(server.close)
            say(f"prometheus: {server.url}")
            say("grafana:    dashboards are written by python -m trainer.live.grafana FOLDER")
        elif arguments.prometheus:
            say(HOW_TO_INSTALL)
        say("Ctrl-C ends it; the run goes on.")
        (stop or _stopped_by_signal()).wait()


def _prometheus_folder(storage: str | None, run: StoragePath, closing: ExitStack) -> Path:
    """Prometheus' own files need a local disk."""
    if storage is not None:
        return Path(storage).resolve()
    if isinstance(run, Path):
        return (run / ".prometheus").resolve()
    return Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="tandem-prometheus-")))


def _stopped_by_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
