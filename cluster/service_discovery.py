"""Prometheus' HTTP service discovery: one stable URL that lists every rank's metrics endpoint.

    scrape_configs:
      - job_name: tandem
        http_sd_configs: [{url: "http://127.0.0.1:9480/targets"}]

The driver serves it from its start to its end. Ranks come and go with restarts; the URL stays.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

DEFAULT_PORT = 9480
PORTS_TRIED = 20
REQUEST_TIMEOUT_SECONDS = 5.0


class ServiceDiscovery:
    """Serves GET /targets. A context manager; `url` is known once it is made.

    Args:
        run: label of every target, usually the RUN folder's name.
        host: address listened on.
        port: first port tried; the next free one of PORTS_TRIED is taken. 0: any free port.
    """

    def __init__(self, run: str, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> None:
        self._run = run
        self._targets: dict[int, str] = {}
        self._lock = threading.Lock()
        self._http = self._listen(host, port)
        self.url = f"http://{host}:{self._http.server_address[1]}/targets"
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.1,), name="tandem-discovery", daemon=True
        )

    def set_target(self, rank: int, address: str) -> None:
        """Rank `rank` serves its metrics at `address` ("host:port") from now on."""
        with self._lock:
            self._targets[rank] = address

    def keep_ranks_below(self, world_size: int) -> None:
        """Forget ranks of a larger worker group that went before."""
        with self._lock:
            self._targets = {r: a for r, a in self._targets.items() if r < world_size}

    def render(self) -> bytes:
        """The list in the form Prometheus asks for."""
        with self._lock:
            targets = sorted(self._targets.items())
        groups = [
            {"targets": [address], "labels": {"run": self._run, "rank": str(rank)}}
            for rank, address in targets
        ]
        return json.dumps(groups).encode()

    def __enter__(self) -> "ServiceDiscovery":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _listen(self, host: str, port: int) -> ThreadingHTTPServer:
        ports = range(port, port + PORTS_TRIED if port else 1)
        for tried in ports:
            try:
                server = ThreadingHTTPServer((host, tried), _handler_of(self))
            except OSError:  # taken, by another run
                continue
            server.daemon_threads = True
            return server
        raise ValueError(
            f"no free port for service discovery on {host} in {ports[0]}..{ports[-1]}; "
            "end a run that is no longer needed"
        )


def _handler_of(discovery: ServiceDiscovery) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_SECONDS

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/targets":
                self.send_error(404)
                return
            body = discovery.render()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not news."""

    return Handler
