"""Kubernetes' own API server and its etcd, on this machine: what the chart makes is applied to it.

Nothing else of a cluster runs: no pod starts, no controller answers. `KUBEBUILDER_ASSETS` names the
folder of the two programs, as for controller-runtime's envtest (`setup-envtest use -p path`).
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.chart import SCHEMAS, program

START_SECONDS = 240
TOKEN = "of-the-test-alone"


def assets() -> dict[str, str] | None:
    """The programs by name; None where one is missing."""
    folder = os.environ.get("KUBEBUILDER_ASSETS", str(SCHEMAS / "bin"))
    found = {
        name: shutil.which(name, path=folder) or shutil.which(name)
        for name in ("etcd", "kube-apiserver")
    }
    others = {name: program(name) for name in ("kubectl", "helm")}
    programs = {name: path for name, path in (found | others).items() if path is not None}
    return programs if len(programs) == 4 else None


@dataclass(frozen=True)
class ApiServer:
    """A server that answers; its administrator's clients."""

    programs: dict[str, str]
    kubeconfig: Path

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """What it prints; a failure is its message."""
        return self._run("kubectl", *arguments, given=given)

    def refused(self, *arguments: str, given: str) -> str:
        """The message of a request that is not granted."""
        try:
            answer = self.kubectl(*arguments, given=given)
        except RuntimeError as error:
            return str(error)
        raise AssertionError(f"granted: {answer}")

    def helm(self, *arguments: str) -> str:
        return self._run("helm", *arguments)

    def get(self, kind: str, name: str, namespace: str) -> dict:
        return json.loads(self.kubectl("get", kind, name, f"--namespace={namespace}", "-o=json"))

    def _run(self, name: str, *arguments: str, given: str = "") -> str:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(
            [self.programs[name], *arguments],
            input=given,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(done.stderr + done.stdout)
        return done.stdout


@contextmanager
def api_server(programs: dict[str, str], folder: Path) -> Iterator[ApiServer]:
    """Start both, yield when they answer, and end them."""
    client, peer, secure = _free_ports(3)
    etcd_address = f"http://127.0.0.1:{client}"
    etcd = [
        programs["etcd"],
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={etcd_address}",
        f"--advertise-client-urls={etcd_address}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
    ]
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
    server = [
        programs["kube-apiserver"],
        f"--etcd-servers={etcd_address}",
        f"--cert-dir={folder / 'certificates'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={secure}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.0.0.0/24",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        # Its controller is not there, which would make each namespace's account.
        "--disable-admission-plugins=ServiceAccount",
    ]
    processes = []
    try:
        for command in (etcd, server):
            log = (folder / f"{Path(command[0]).name}.log").open("w")
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        found = ApiServer(programs, _kubeconfig(folder, secure))
        _wait(found, processes, folder)
        yield found
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _kubeconfig(folder: Path, port: int) -> Path:
    cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    return folder / "kubeconfig"


def _wait(server: ApiServer, processes: list[subprocess.Popen], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.kubectl("get", "--raw=/readyz", "--request-timeout=5s")
            server.kubectl("get", "namespace", "default", "--request-timeout=5s")
            return
        except RuntimeError as error:
            ended = [process.args for process in processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
                raise RuntimeError(f"no API server ({ended}): {error}\n{logs}") from error
            time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
