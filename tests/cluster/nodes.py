"""A real Ray cluster of several nodes on this machine: `ray start`s, killed by their pids."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from cluster.workers.session import short_temp_folder
from tests.cluster.namespaces import Network

RAY = Path(sys.executable).parent / "ray"
START_SECONDS = 600
"""Ray gives up a node after 30: on a busy machine it is started several times."""
COMMAND_LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands"),
    *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
"""Of an autoscaler's configuration: there is nothing to set up."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Node:
    """One `ray start --block`, in a process group of its own with all it starts."""

    def __init__(self, *flags: str, environment: dict[str, str], space: str | None = None) -> None:
        environment = environment | {"PYTHONUNBUFFERED": "1"}
        # The agent's usual port is taken where another Ray runs, and then no job can be submitted.
        flags = (*flags, "--dashboard-agent-listen-port=0")
        command = [str(RAY), "start", "--block", "--disable-usage-stats", *flags]
        if space is not None:
            self.space = space
            command = ["ip", "netns", "exec", space, *command]
        self._command = [*command, "--object-store-memory=80000000"]
        self._environment = environment
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the node is
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def said(self) -> str:
        """The end of its output."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")[-2000:]

    def terminate(self) -> None:
        """SIGTERM to `ray start` alone, as Kubernetes does to a pod's first process."""
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL, to the whole node at once: daemons and workers."""
        for pid in descendants(self.process.pid):
            kill_quietly(pid)
        kill_quietly(self.process.pid)
        self.process.wait()


class Cluster:
    """A head without CPUs, and nodes that are added and killed. A context manager.

    Args:
        network: give each node a network namespace of its own; the head stays in this one.
        token: what every client must show; None: whoever reaches the cluster may use it.
        most_nodes: an autoscaler adds nodes of one CPU where they are asked for, up to so many.
    """

    def __init__(
        self, network: Network | None = None, token: str | None = None, most_nodes: int = 0
    ) -> None:
        self.network = network
        self.environment = os.environ | authentication(token)
        """Of its nodes, and of whoever speaks to it."""
        self.host = "127.0.0.1" if network is None else network.head
        # Ray's sockets lie some 60 characters below it, and a socket's path may have 107: pytest's
        # own folders are too long.
        self.folder = Path(tempfile.mkdtemp(prefix="nodes-", dir=short_temp_folder()))
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"{self.host}:{self.port}"
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        self.nodes: list[Node] = []
        self._autoscaler = self._configured(most_nodes) if most_nodes else ()
        self.head = self._start_head()

    def _start_head(self) -> Node:
        head = Node(
            "--head",
            "--num-cpus=0",
            f"--node-ip-address={self.host}",
            f"--port={self.port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--temp-dir={self.folder}",
            *self._autoscaler,
            environment=self.environment,
        )
        wait_for_port(self.host, self.port, head)
        wait_for_port("127.0.0.1", self.dashboard_port, head)
        return head

    def _configured(self, most_nodes: int) -> tuple[str, ...]:
        """The flag of Ray's own stand-in for a cloud: its nodes are processes of this machine."""
        self.environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        kinds = {"ray.head.default": (0, 0), "worker": (1, most_nodes)}
        config = {
            "cluster_name": "grows",
            "max_workers": most_nodes,
            "idle_timeout_minutes": 0.1,
            "upscaling_speed": most_nodes,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {
                kind: {
                    "resources": {"CPU": cpus, "object_store_memory": 80_000_000},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": most,
                }
                for kind, (cpus, most) in kinds.items()
            },
            "head_node_type": "ray.head.default",
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            **{key: [] for key in COMMAND_LISTS},
        }
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(config))
        return (f"--autoscaling-config={file}",)

    def restart_head(self) -> None:
        """Kill it and all nodes, which would follow it, and start an empty cluster in its place."""
        for node in (*self.nodes, self.head):
            node.kill()
        self.nodes = []
        self.head = self._start_head()

    def add_node(self, cpus: int = 1) -> Node:
        space, host = (None, self.host) if self.network is None else self.network.add_space()
        flags = (f"--address={self.address}", f"--node-ip-address={host}", f"--num-cpus={cpus}")
        node = Node(*flags, environment=self.environment, space=space)
        self.nodes.append(node)
        return node

    def wait_until_nothing_is_asked_of_the_autoscaler(self) -> None:
        """By what it writes of each look. Its stand-in for a cloud gives no idle nodes back."""
        deadline = time.monotonic() + START_SECONDS
        log = self.folder / "session_latest/logs/monitor.log"
        while not log.read_text().rpartition("From request_resources:\n")[2].startswith(" (none)"):
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(1)

    def wait_for_cpus(self, count: int) -> None:
        """Until nodes with so many CPUs together have joined."""
        code = (
            "import ray, sys, time; ray.init(sys.argv[1], logging_level='ERROR', log_to_driver=0)\n"
            "while ray.cluster_resources().get('CPU', 0) < int(sys.argv[2]): time.sleep(0.2)"
        )
        command = [sys.executable, "-c", code, self.address, str(count)]
        waiting = subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while waiting.poll() is None:
            for node in self.nodes:
                # Nodes that start in the same moment may choose the same ports.
                if node.process.poll() is not None:
                    print(f"a node ended and is started again:\n{node.said}")
                    node.start()
            if time.monotonic() > deadline:
                waiting.kill()
                raise AssertionError("\n".join(node.said for node in (self.head, *self.nodes)))
            time.sleep(0.2)
        assert waiting.returncode == 0, self.head.said

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
        shutil.rmtree(self.folder, ignore_errors=True)


def authentication(token: str | None) -> dict[str, str]:
    """Variables of a cluster that wants `token`; None: it wants none."""
    if token is None:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


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


def wait_for_port(host: str, port: int, node: Node) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if node.process.poll() is not None:
            assert "timed out during startup" in node.said, node.said
            node.start()
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens on port {port}"
        time.sleep(0.2)
