"""`tandem dashboard RUN`: Prometheus with our rules where it is installed, and the live page."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trainer.base.address import LAST_PORT
from trainer.base.mistake import Mistake
from trainer.base.ranges import check_given, check_ranges
from trainer.base.screen import say
from trainer.files.storage import StoragePath, storage_path
from trainer.live.below import show_runs
from trainer.live.prometheus import HOW_TO_INSTALL, Prometheus, is_installed, make_config
from trainer.live.server import LivePage
from trainer.run.folder import RunFolder
from trainer.run.start import BEFORE_CONFIG, names_in

MOST_WAIT = 7 * 24 * 3600
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class DashboardArguments:
    """Watch a run: a live page on this machine, and Prometheus with Tandem's rules and alerts. Of a
    folder that is no run, list the runs below it."""

    run: Annotated[str, tyro.conf.Positional] = "."
    """Folder or URI of the run: in training, finished, or about to start (then it is waited for);
    or a folder of runs. Left out: the runs below this folder."""
    wait: int = 300
    """Seconds to wait for a run that is not there yet."""
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
        check_ranges(self, port=(0, LAST_PORT), prometheus_port=(1, LAST_PORT), wait=(0, MOST_WAIT))


def dashboard(arguments: DashboardArguments, stop: threading.Event | None = None) -> None:
    """Serve until Ctrl-C, SIGTERM or `stop`; or list the runs of a folder.

    Raises:
        Mistake: where there is no run, nor one in time, or a port is taken.
    """
    run = storage_path(arguments.run)
    is_there = RunFolder(run).config_file.is_file()
    if (
        isinstance(run, Path)
        and run.is_dir()
        and not is_there
        and not names_in(run) & BEFORE_CONFIG
    ):
        show_runs(run)
        return
    if is_there or (isinstance(run, Path) and run.exists() and not run.is_dir()):
        RunFolder(run).read_config()
    stop = stop or _stopped_by_signal()
    with ExitStack() as closing:
        live = LivePage(run, arguments.host, arguments.port)
        closing.callback(live.close)
        say(f"live page:  {live.url}")
        if not is_there:
            say(f"{run} is no run yet: waiting up to {arguments.wait} s for it to start")
            _wait_until_begun(live, arguments.wait, stop, run)
            if stop.is_set():
                return
        if arguments.prometheus and is_installed():  # its folder is the run's
            folder = _prometheus_folder(arguments.storage, run, closing)
            config = make_config(list(arguments.discovery), arguments.ray_discovery)
            server = Prometheus(config, folder, arguments.prometheus_port)
            closing.callback(server.close)
            say(f"prometheus: {server.url}")
            say("grafana:    dashboards are written by python -m trainer.live.grafana FOLDER")
        elif arguments.prometheus:
            say(HOW_TO_INSTALL)
        say("Ctrl-C ends it; the run goes on.")
        stop.wait()


def _wait_until_begun(
    live: LivePage, seconds: int, stop: threading.Event, run: StoragePath
) -> None:
    """Raises Mistake where nothing came of it."""
    deadline = time.monotonic() + seconds
    while not live.is_begun and not stop.wait(LOOK_SECONDS):
        if time.monotonic() > deadline:
            raise Mistake(
                f"{run} is no run after {seconds} s: is the name right? A run is there once its "
                "workers are up; --wait SECONDS waits longer"
            )


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
