"""The GPUs that `tandem plan` reckons with: given, those that are there, or assumed; and which."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.base.byte_sizes import as_bytes, bytes_of
from trainer.base.mistake import Mistake
from trainer.command_line import PlanArguments

SMALLEST_DEVICE = 2**20
LARGEST_DEVICE = 2**50
ASSUMED_GPUS = 8
ASSUMED_A_NODE = 8
ASSUMED_MEMORY = "80GB"


@dataclass(frozen=True)
class FoundGpus:
    """GPUs that are there."""

    where: str
    """This machine, or a cluster."""
    count: int
    a_node: int
    """On the machine that has most."""
    memory: int | None
    """Bytes of the smallest; None: not known from here."""


@dataclass(frozen=True)
class PlannedGpus:
    """GPUs of a plan."""

    count: int
    a_node: int
    memory: int
    """Bytes of each."""
    told: tuple[str, ...]
    """What was found and what was assumed, a line each; empty where flags say all."""


def gpus_here() -> FoundGpus:
    """Of this machine."""
    count = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(n).total_memory for n in range(count)]
    return FoundGpus("this machine", count, count, min(sizes, default=None))


def planned_gpus(arguments: PlanArguments, found: FoundGpus) -> PlannedGpus:
    """What flags say, else what was found, else what most clusters have. Raises Mistake.

    found: on the cluster that is named, else on this machine.
    """
    given = arguments.gpu_memory
    count = arguments.gpus or found.count or ASSUMED_GPUS
    a_node = arguments.gpus_a_node or found.a_node or ASSUMED_A_NODE
    memory = device_bytes(given) if given is not None else found.memory
    memory = memory or device_bytes(ASSUMED_MEMORY)
    gpus = "1 GPU" if count == 1 else f"{count:,} GPUs"
    wanted = (  # words, flag, whether it says so, whether it was found
        (gpus, "--gpus", arguments.gpus is not None, bool(found.count)),
        (f"{as_bytes(memory)} each", "--gpu-memory", given is not None, found.memory is not None),
        (
            f"at most {a_node:,} a machine",
            "--gpus-a-node",
            arguments.gpus_a_node is not None,
            bool(found.a_node),
        ),
    )
    taken = [words for words, _, by_flag, is_found in wanted if not by_flag and is_found]
    assumed = [each[:2] for each in wanted if not each[2] and not each[3]]
    told = [f"{', '.join(taken)}: as {found.where} has"] if taken else []
    if assumed:
        why = "has no GPU" if not found.count else "does not say it"
        words, flags = zip(*assumed, strict=True)
        told.append(
            f"{', '.join(words)}: assumed, since {found.where} {why}; set by {', '.join(flags)}"
        )
    return PlannedGpus(count, a_node, memory, tuple(told))


def device_bytes(text: str) -> int:
    """Memory of a GPU: "80GB", "80 GiB" or a plain number of bytes. Raises Mistake on others."""
    size = bytes_of(text, "--gpu-memory", "80GB")
    if size > LARGEST_DEVICE:
        raise Mistake(
            f"--gpu-memory {text!r} is {size:,} bytes, more than any GPU's memory: write 80GB"
        )
    if size < SMALLEST_DEVICE:
        raise Mistake(f"--gpu-memory {text!r} is {size} bytes, no GPU's memory: write {size}GB")
    return size
