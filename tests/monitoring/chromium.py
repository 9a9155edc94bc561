"""Headless Chromium: a page's final DOM, its console, and every address it asked for."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse


@dataclass(frozen=True)
class Visit:
    """What opening a page came to."""

    dom: str
    console: list[str]
    requests: set[str]

    @property
    def outside(self) -> set[str]:
        """Addresses that are neither files nor on this machine."""
        return {
            url
            for url in self.requests
            if urlparse(url).scheme not in ("file", "data", "chrome", "about")
            and urlparse(url).hostname not in ("127.0.0.1", "localhost")
        }


def visit(url: str, folder: Path, dark: bool = False) -> Visit:
    """Open `url` and let its scripts run; the browser's own traffic is turned off."""
    log = folder / "net.json"
    command = [
        *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *(
            "--disable-sync",
            "--disable-default-apps",
            "--disable-extensions",
            "--disable-domain-reliability",
        ),
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom"),
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    console = re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
    return Visit(done.stdout, console, requested(log, url))


def requested(log: Path, page: str) -> set[str]:
    """Addresses in Chromium's network log that the page, not the browser itself, asked for."""
    origin = "null" if page.startswith("file:") else page.rstrip("/")
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return {
        event["url"]
        for event in events
        if "url" in event and str(event.get("initiator", "")).startswith((origin, "file:"))
    }
