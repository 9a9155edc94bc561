"""All that Tandem takes from Ray's private modules: any release may move it.

`tests/cluster/test_ray_private.py` holds each to the Ray that is pinned. What belongs to Ray Train
is imported where it is asked for: it brings torch along, which submitting a job does not need.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from ray._private.services import canonicalize_bootstrap_address

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

LARGEST_PACKAGE_BYTES: int = ray_constants.DASHBOARD_CLIENT_MAX_SIZE
"""A cluster's dashboard takes no larger folder than this."""
PACKING_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", packaging.__name__)
"""They tell of each upload, at levels of their own."""
JOB_STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Seconds between SIGTERM and SIGKILL of a job that is stopped; read from the job's environment."""
JOB_STOP_SECONDS = 3
"""Without it."""


def running_cluster() -> str:
    """The "host:port" of the cluster that runs on this machine, which Ray calls "auto".

    Raises ConnectionError where there is none. RAY_ADDRESS must not be set: Ray would take it.
    """
    return str(canonicalize_bootstrap_address("auto"))


def packed_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files of `folder` that Ray would pack, and their bytes: those that nothing ignores."""
    found: list[tuple[Path, int]] = []

    def note(path: Path) -> None:
        if path.is_file():
            found.append((path, path.stat().st_size))

    packaging._dir_travel(folder.absolute(), [], note, include_gitignore=True)
    return iter(found)


def uploaded_module(client: JobSubmissionClient, file: Path) -> str:
    """A module of one file, sent to the cluster: an entry of a job's `py_modules`.

    `ray.init` takes such a file itself; the client of jobs says that it is no directory.
    """
    uri: str = packaging.get_uri_for_file(str(file))
    if not client._package_exists(uri):
        client._upload_package(uri, str(file), include_gitignore=False)
    return uri


def token_headers() -> dict[str, str]:
    """Of a request to a dashboard: the token that the environment names, where it wants one."""
    from ray._private.authentication import http_token_authentication

    return dict(http_token_authentication.get_auth_headers_if_auth_enabled({}))


def autoscaling_coordinator() -> Any:
    """The cluster's actor that adds up what Ray's libraries ask the autoscaler for."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as ray_data

    return ray_data.get_or_create_autoscaling_coordinator()


def draining_nodes() -> set[str]:
    """Ids of the nodes that will be taken away. In a process of the cluster, not of a client."""
    return set(ray._private.state.state.get_draining_nodes())


def free_by_node() -> list[dict[str, float]]:
    """What each living node has to spare, by resource. In a process of the cluster as well."""
    return list(ray._private.state.available_resources_per_node().values())


def torch_backend() -> Any:
    """The class that makes Ray Train's torch process groups."""
    from ray.train.torch.config import _TorchBackend

    return _TorchBackend


def health_check_error() -> Any:
    """The class that Ray Train wraps a worker's death in; `.health_check_failure` is the death."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError
