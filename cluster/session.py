"""Ray for the length of a command: a quiet local cluster of our own, or one that exists."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, Any

import ray

from cluster.options import existing_address
from cluster.workers import Resources
from trainer.machine import usable_cpus
from trainer.mistake import Mistake
from trainer.progress import quiet_libraries

OBJECT_STORE_BYTES = 128 * 2**20  # rank 0's reports are all that goes through it
STANDARD_ERROR = 2
OUR_PACKAGES = ("cluster", "trainer", "embeddings", "losses")
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
    try:
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


def _join(address: str, options: dict[str, Any], verbose: bool) -> None:
    with nullcontext(BytesIO()) if verbose else held_errors() as held:
        try:
            ray.init(address=address, runtime_env=our_code(), **options)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            held.seek(0)
            # Without the token Ray says that nothing answers; its native code knows better.
            refused = b"Unauthenticated" in held.read()
            raise Mistake(join_message(address, error, refused)) from error


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


def our_code() -> dict[str, Any] | None:
    """Runtime environment that carries our packages to other nodes.

    None inside a submitted job, which carries its working directory already.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    return {"py_modules": [str(folder) for folder in package_folders(OUR_PACKAGES)]}


def package_folders(names: Sequence[str]) -> list[Path]:
    """Where our packages lie."""
    folders = []
    for name in names:
        spec = find_spec(name)
        assert spec is not None and spec.submodule_search_locations is not None
        folders.append(Path(next(iter(spec.submodule_search_locations))))
    return folders


def join_message(address: str, error: Exception, refused: bool = False) -> str:
    """What to do where a cluster cannot be joined; `refused`: it answered, and wants a token."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    asks = isinstance(error, ray.exceptions.AuthenticationError) or "token" in text.lower()
    if refused or asks:
        return (
            f"the Ray cluster at {address} asks for a token: {text}; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN to the cluster's token (`ray get-auth-token` on its head prints it), "
            "or put it in ~/.ray/auth_token"
        )
    return (
        f"no Ray cluster answers at {address}: {text}; start one with `ray start --head`, name "
        "another with --address, or leave --address and RAY_ADDRESS out for a local one"
    )
