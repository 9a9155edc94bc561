"""A node or a worker that will be taken away: SIGTERM announces it, in time for a checkpoint.

Kubernetes sends SIGTERM to a pod's first process, `ray start --block`. Ray then marks the node as
draining and lets its workers live for RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S (30) seconds more: the
driver sees it and asks the group to stop. Other schedulers send SIGTERM to every process of a job:
a worker that gets one asks for the same, where Ray would end it on the spot. All ranks agree within
a step, write a checkpoint and return; what is left of the cluster goes on from there.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

import ray
from ray.train.torch import TorchConfig

from cluster.workers.ray_private import torch_backend
from trainer.distributed.ranks import choose_interface

TOLD = threading.Event()
"""In a worker: set once it got SIGTERM."""


def listen() -> None:
    """In a worker's main thread: note SIGTERM instead of dying of it."""

    def handle(number: int, frame: FrameType | None) -> None:
        TOLD.set()

    signal.signal(signal.SIGTERM, handle)


def choose_own_interface() -> None:
    """In a worker: have gloo use the interface by which Ray reaches this node."""
    choose_interface(ray.util.get_node_ip_address())


def hide_gpus() -> None:
    """In a worker that has no GPU of its own: Ray leaves the node's in sight."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


TorchBackend: Any = torch_backend()


class ListeningBackend(TorchBackend):  # type: ignore[misc]
    """Ray Train's process group, made by workers that listen to SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(listen)  # training has a thread of its own, and signals do not
        worker_group.execute(choose_own_interface)
        if backend_config.backend == "gloo":
            worker_group.execute(hide_gpus)
        super().on_start(worker_group, backend_config)


class ListeningTorchConfig(TorchConfig):
    """Torch's configuration with `ListeningBackend`."""

    @property
    def backend_cls(self) -> type[ListeningBackend]:
        return ListeningBackend
