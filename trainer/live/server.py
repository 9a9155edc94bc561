"""The live page: one HTML page, and the run's data beside it, on localhost."""

from __future__ import annotations

import json
from typing import Any

from trainer.base.address import EVERY_ADDRESS, reachable_address, with_port
from trainer.base.mistake import Mistake
from trainer.files.storage import StoragePath
from trainer.live.page import asset, page, panel_rows
from trainer.live.runs import RunReader
from trainer.observe.http import Page, PortTakenError, SmallServer

BODY = """<header><h1 id="run">Run</h1><div class="state" id="state"></div></header>
<div id="troubles"></div>
<div class="numbers" id="numbers"></div>
<main id="panels"></main>
<p class="note">Values are written every training.log_every_steps steps, means of all ranks. What
each rank says of itself is in Prometheus and Grafana. Dotted: restarts.</p>"""


def live_html() -> str:
    """The page; it asks its own server for data.json every two seconds."""
    names = ("echarts.min.js", "charts.js", "panels.js", "live.js")
    scripts = [asset(name) for name in names]
    return page("Tandem run", BODY, scripts, connect="'self'")


class LivePage:
    """Serves the live page of one run until `close`."""

    def __init__(self, run: StoragePath, host: str, port: int) -> None:
        self._run, self._name = RunReader(run), run.name
        html = live_html().encode()
        pages = {
            "/": Page("text/html; charset=utf-8", lambda: html),
            "/data.json": Page("application/json", self._data),
        }
        try:
            self._server = SmallServer(host, port, pages, "tandem-live", "--host, --port")
        except PortTakenError as error:
            raise Mistake(f"--port {port} is taken on {host}: choose another --port") from error
        shown = reachable_address() if host in EVERY_ADDRESS else host
        self.url = f"http://{with_port(shown, self._server.port)}/"

    def close(self) -> None:
        self._server.close()

    @property
    def is_begun(self) -> bool:
        """Whether there is a run to be seen."""
        return self._run.is_begun

    def _data(self) -> bytes:
        data: dict[str, Any] = {"waiting": self._name}
        if self._run.is_begun:
            data = {"runs": [self._run.read()], "rows": panel_rows()}
        return json.dumps(data, allow_nan=False).encode()
