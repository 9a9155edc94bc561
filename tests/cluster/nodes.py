"""A real Ray cluster of several nodes on this machine: `ray start`s, killed by their pids."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

RAY = Path(sys.executable).parent / "ray"
START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Node:
    """One `ray start --block`, in a process group of its own with all it starts."""

    def __init__(self, *flags: str) -> None:
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
        command = [str(RAY), "start", "--block", "--disable-usage-stats", *flags]
        self.process = subprocess.Popen(
            [*command, "--object-store-memory=80000000"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        """SIGKILL, to the whole node at once: daemons and workers."""
        for pid in descendants(self.process.pid):
            kill_quietly(pid)
        kill_quietly(self.process.pid)
        self.process.wait()


class Cluster:
    """A head without CPUs, and nodes that are added and killed. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        self.nodes: list[Node] = []
        self.head = Node(
            "--head",
            "--num-cpus=0",
            "--node-ip-address=127.0.0.1",
            f"--port={self.port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--temp-dir={folder}",
        )
        wait_for_port(self.port)

    def add_node(self, cpus: int = 1) -> Node:
        node = Node(
            f"--address={self.address}", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}"
        )
        self.nodes.append(node)
        return node

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for node in (*self.nodes, self.head):
            if node.process.poll() is None:
                node.kill()


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, the nearest first."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    children = [int(child) for child in found.stdout.split()]
    return children + [below for child in children for below in descendants(child)]


def kill_quietly(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens on port {port}"
        time.sleep(0.2)
