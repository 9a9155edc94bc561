"""Ray for the length of a command: a quiet local cluster of our own, or one that exists."""

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, nullcontext, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import ray

import tandem
from cluster.workers.counts import Resources
from cluster.workers.options import ClusterAddress, existing_address
from cluster.workers.ray_private import running_cluster
from tandem import PACKAGES, find_package
from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.observe.progress import quiet_libraries

OBJECT_STORE_BYTES = 128 * 2**20  # rank 0's reports are all that goes through it
STANDARD_ERROR = 2
START = Path(tandem.__file__).resolve()
"""Whoever imports it has our packages, whatever else has their names."""
KNOCK_SECONDS = 10.0
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end or a failure is seen
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # importing torch on a busy machine
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}


def local_cpus() -> int:
    """CPUs of a local cluster: those that this process may use."""
    return usable_cpus()


def cluster_resources() -> Resources:
    """The connected cluster's CPUs and GPUs."""
    total = ray.cluster_resources()
    return Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)))


def gpus_by_node() -> list[int]:
    """GPUs of each living node of the connected cluster."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [int(resources.get("GPU", 0)) for resources in alive]


def metrics_addresses() -> list[str]:
    """Where each living node of the connected cluster serves Ray's own metrics."""
    return [
        f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for node in ray.nodes()
        if node["Alive"]
    ]


@contextmanager
def ray_session(
    address: str | None, min_cpus: int = 1, verbose: bool = False
) -> Iterator[Resources]:
    """Ray, connected, for the body; a local cluster ends with it and takes its files along.

    Ray puts the folder that a driver stands in first on its workers' path, so it is started in an
    empty one: whatever a user's folder holds, `types.py` for one, would be imported instead of
    what it is named after.

    Args:
        address: an existing cluster ("auto", "host:6379", "ray://…"); None starts a local one.
        min_cpus: CPUs a local cluster offers at least, even on a smaller machine: so many
            workers can be asked for as one likes.
        verbose: let Ray and the workers speak.
    """
    quiet_libraries(verbose)
    for variable, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    joined = existing_address(address)
    folder = None
    try:
        # Ray's daemons report dead workers on standard output; the cause is told by us, once.
        with nullcontext() if verbose else redirect_stdout(StringIO()):
            if joined is None:
                folder = Path(tempfile.mkdtemp(prefix="tandem-", dir=short_temp_folder()))
                _start_local(folder, min_cpus, options)
            else:
                _join(joined, options, verbose)
            yield cluster_resources()
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def short_temp_folder() -> str | None:
    """Where temporary files go; None, the system's choice, unless that path is too long.

    Ray's sockets lie some 60 characters below it, and a socket's path may have 107.
    """
    return "/tmp" if len(tempfile.gettempdir()) > 30 else None


def _start_local(folder: Path, min_cpus: int, options: dict[str, Any]) -> None:
    # No cloud takes this machine back node by node; the watcher is a process, a second to start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Imported by each worker before its first task, at no cost: a runtime environment would have
    # Ray throw the workers away that it started ahead.
    os.environ.setdefault("RAY_preload_python_modules", tandem.__name__)
    path = os.environ.get("PYTHONPATH")
    ours = str(START.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([*([path] if path else []), ours])
    # Ray has a local cluster ask for a token. It would leave a new one in ~/.ray/auth_token, and
    # from then on each `ray start` of this user would ask for that.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        with chdir(folder):
            ray.init(
                address="local",
                num_cpus=max(local_cpus(), min_cpus),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _temp_dir=str(folder),
                **options,
            )
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no class for it
            raise
        raise Mistake(
            "Ray did not start on this machine within its 30 s: it has too much else to do, or too "
            "little memory; try again, or train without Ray: torchrun -m trainer.train"
        ) from error


def _join(address: ClusterAddress, options: dict[str, Any], verbose: bool) -> None:
    with ExitStack() as stack:
        # Ray would take RAY_ADDRESS for "auto"; and it would try a dead address for minutes.
        stack.enter_context(without_variables("RAY_ADDRESS"))
        stack.enter_context(chdir(stack.enter_context(TemporaryDirectory(prefix="tandem-"))))
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
        knock(address)
        held = BytesIO() if verbose else stack.enter_context(held_errors())
        try:
            ray.init(address=address.text, runtime_env=runtime_environment(), **options)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            held.seek(0)
            # Without the token Ray says that nothing answers; its native code knows better.
            refused = b"Unauthenticated" in held.read()
            raise Mistake(join_message(str(address), error, refused)) from error
        except RuntimeError as error:  # another release of Ray or of Python there
            raise Mistake(f"{address} cannot be joined: {first_line(error)}") from error


def knock(address: ClusterAddress) -> None:
    """Raise Mistake at once where nobody listens at the address."""
    try:
        text = running_cluster() if address.text == "auto" else address.text
        target = ClusterAddress(text, address.named_by).host_and_port
        assert target is not None
        with socket.create_connection(target, timeout=KNOCK_SECONDS):
            pass
    except (OSError, UnicodeError) as error:  # refused, silent, unknown; a name that is none
        raise Mistake(join_message(str(address), error)) from error


def runtime_environment() -> dict[str, Any]:
    """Of workers on a cluster that exists. A submitted job carries our code already."""
    start = f"{tandem.__name__}.{tandem.claim.__name__}"
    environment: dict[str, Any] = {"worker_process_setup_hook": start}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        environment["py_modules"] = [str(START), *our_packages()]
    return environment


@contextmanager
def held_errors() -> Iterator[IO[bytes]]:
    """Holds back what this process, its native code included, writes to standard error.

    Ray's retries are twenty warnings that no Python logger sees.
    """
    sys.stderr.flush()
    terminal = os.dup(STANDARD_ERROR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), STANDARD_ERROR)
        try:
            yield held
        finally:
            sys.stderr.flush()
            os.dup2(terminal, STANDARD_ERROR)
            os.close(terminal)


def our_packages() -> list[str]:
    """What Ray carries to other nodes, for their workers' path, beside START."""
    return list(map(str, map(find_package, PACKAGES)))


def join_message(address: str, error: Exception, refused: bool = False) -> str:
    """What to do where a cluster cannot be joined; `refused`: it answered, and wants a token.

    `address` comes with the name of the flag or variable that it is from.
    """
    if refused or asks_for_a_token(error):
        return token_message(address, error)
    return (
        f"no Ray cluster answers at {address}: {first_line(error)}; start one with `ray start "
        "--head`, name another with --address, or leave --address and RAY_ADDRESS out for a local "
        "one"
    )


def asks_for_a_token(error: Exception) -> bool:
    """Whether a cluster answered, but wants a token."""
    wants = isinstance(error, ray.exceptions.AuthenticationError)
    return wants or "token" in first_line(error).lower()


def token_message(address: str, error: Exception) -> str:
    """What to do where a cluster wants a token."""
    return (
        f"the Ray cluster at {address} asks for a token: {first_line(error)}; set "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token (`ray get-auth-token` on "
        "its head prints it) or put that into ~/.ray/auth_token; RAY_AUTH_MODE is needed either way"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def without_variables(*names: str) -> Iterator[None]:
    """The body runs without these variables in the environment."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
