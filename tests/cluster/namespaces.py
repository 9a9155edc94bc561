"""Nodes in network namespaces of their own, on one bridge: cables that can be cut and mended."""

import os
import shutil
import subprocess
from types import TracebackType

import pytest


def need_namespaces() -> None:
    """Skip where they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the `ip` command (iproute2)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    probe = subprocess.run(["ip", "netns", "add", "tandem-probe"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no network namespaces here: {probe.stderr.strip()}")
    ip("netns", "del", "tandem-probe")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """A bridge that this namespace has the address `head` on. A context manager."""

    def __init__(self) -> None:
        number = os.getpid() % 200
        self._name = f"td{number}"
        self._subnet = f"10.77.{number}"
        self._spaces: list[str] = []
        self.head = f"{self._subnet}.1"

    def __enter__(self) -> "Network":
        ip("link", "add", self._name, "type", "bridge")
        ip("addr", "add", f"{self.head}/24", "dev", self._name)
        ip("link", "set", self._name, "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for space in self._spaces:
            # The namespace itself lives on, cable and all, with the last process in it.
            ip("link", "del", self._cable(space))
            ip("netns", "del", space)
        ip("link", "del", self._name)

    def add_space(self) -> tuple[str, str]:
        """A new namespace with one cable to the bridge: its name and its address."""
        number = len(self._spaces) + 2
        space, address = f"{self._name}n{number}", f"{self._subnet}.{number}"
        cable = self._cable(space)
        ip("netns", "add", space)
        self._spaces.append(space)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", cable, "master", self._name, "up")
        ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "link", "set", "lo", "up")
        return space, address

    def cut(self, space: str) -> None:
        """No packet gets through, and no connection is told."""
        ip("link", "set", self._cable(space), "down")

    def mend(self, space: str) -> None:
        ip("link", "set", self._cable(space), "up")

    def _cable(self, space: str) -> str:
        return f"{space}c"
