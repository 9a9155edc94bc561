"""A Prometheus for a run on this machine: the system's own, with deploy/prometheus' rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from trainer.base.mistake import Mistake

RULES = Path(__file__).parent / "rules"
"""Links to deploy/prometheus, whose files an installed Tandem brings along."""
START_SECONDS = 20.0
HOW_TO_INSTALL = (
    "Prometheus is not installed, so there are no alerts and no history beyond the run's own: "
    "`apt-get install prometheus` (Debian, Ubuntu), `brew install prometheus`, or "
    "deploy/compose.yaml of Tandem's repository, which brings Grafana as well"
)


def is_installed() -> bool:
    return shutil.which("prometheus") is not None


def make_config(discovery_urls: list[str], ray_discovery: str, interval_seconds: int = 5) -> str:
    """A prometheus.yml. JSON is YAML, so no library is needed."""
    refresh = {"refresh_interval": f"{interval_seconds}s"}
    ranks = [{"url": url, **refresh} for url in discovery_urls]
    nodes = [{"url": url.removesuffix("targets") + "ray", **refresh} for url in discovery_urls]
    config = {
        "global": {
            "scrape_interval": f"{interval_seconds}s",
            "scrape_timeout": f"{max(interval_seconds - 1, 1)}s",
            "evaluation_interval": f"{interval_seconds}s",
        },
        "rule_files": [str(RULES / "rules.yml"), str(RULES / "alerts.yml")],
        "scrape_configs": [
            {"job_name": "tandem", "http_sd_configs": ranks},
            {
                "job_name": "ray",
                "http_sd_configs": nodes,
                "file_sd_configs": [{"files": [ray_discovery]}],
            },
        ],
    }
    return json.dumps(config, indent=1)


class Prometheus:
    """Prometheus as a child process, with its data in `folder`, until `close`."""

    def __init__(self, config: str, folder: Path, port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "prometheus.yml"
        file.write_text(config)
        self.url = f"http://127.0.0.1:{port}"
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--storage.tsdb.retention.time=30d",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_ready(folder / "prometheus.log")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _wait_until_ready(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        lines = log.read_text().strip().splitlines()
        raise Mistake(
            f"prometheus did not start within {START_SECONDS:g} s on {self.url}; its last line: "
            f"{lines[-1] if lines else '(none)'}; choose another --prometheus-port if it is taken"
        )
