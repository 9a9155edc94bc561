"""Which of the workers this process is, and its process group.

torchrun and Ray Train set the same environment variables; they are read here and nowhere else.
A process started by neither is the one rank of a world of one, on the same path.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.base.address import interface_of, reachable_address
from trainer.base.mistake import Mistake


@dataclass(frozen=True)
class Ranks:
    """This process's place among the workers of a run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    rendezvous: str | None = None
    """The machine where the ranks meet; None: this one."""

    @property
    def is_first(self) -> bool:
        """Rank 0 writes the run's files and speaks to the terminal."""
        return self.rank == 0

    @staticmethod
    def from_environment() -> Ranks:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; absent means a world of one.

        Raises:
            Mistake: where there are GPUs, but fewer than workers of this machine.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        on_gpu = torch.cuda.is_available()
        if on_gpu and local_rank >= torch.cuda.device_count():
            raise Mistake(
                f"worker {local_rank} of this machine has no GPU: {torch.cuda.device_count()} are "
                "visible. Start at most one worker a GPU, or set CUDA_VISIBLE_DEVICES= to train on "
                "CPUs"
            )
        return Ranks(
            rank=int(os.environ.get("RANK", "0")),
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size))),
            device=torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"),
            rendezvous=os.environ.get("MASTER_ADDR"),
        )


def choose_interface(address: str) -> None:
    """Have gloo meet the other machines by the interface of `address`, unless the user chose one.

    By itself it takes the address of the host's own name, which Debian says is 127.0.1.1.
    """
    name = interface_of(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def collective_backend(on_gpu: bool) -> str:
    """NCCL for tensors on GPUs, gloo for those on the host, of which a run on GPUs has some too."""
    return "cpu:gloo,cuda:nccl" if on_gpu else "gloo"


@contextmanager
def process_group(timeout_seconds: float = 1800.0) -> Iterator[Ranks]:
    """The default process group for the body.

    Collective. A group that a launcher (Ray Train) made already is used and left alone.

    The collector runs before the group is destroyed: objects that still hold it would otherwise
    abort the interpreter's end now and then.
    """
    ranks = Ranks.from_environment()
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    if ranks.world_size > ranks.local_world_size:
        choose_interface(reachable_address(ranks.rendezvous))
    if dist.is_initialized():
        yield ranks
        return
    on_gpu = ranks.device.type == "cuda"
    dist.init_process_group(
        backend=collective_backend(on_gpu),
        device_id=ranks.device if on_gpu else None,
        rank=ranks.rank,
        world_size=ranks.world_size,
        store=dist.HashStore() if ranks.world_size == 1 else None,
        timeout=timedelta(seconds=timeout_seconds),
    )
    try:
        yield ranks
    finally:
        gc.collect()
        dist.destroy_process_group()
