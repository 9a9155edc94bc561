"""Ranks that fail together, and for one reason.

A rank that raises alone leaves the others waiting in a collective until it times out, and the
user reads the time-out. Checks at start therefore run through `together`, which makes the first
cause every rank's error; `check_agreement` finds ranks that were given different things.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from trainer.mistake import Mistake

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Run `action` on every rank; if any raises Mistake, all raise the lowest rank's message.

    Collective: all_gather of one short object.
    """
    result: T | None = None
    error: str | None = None
    try:
        result = action()
    except Mistake as mistake:
        error = str(mistake)
    told = gather_objects((error, socket.gethostname()))
    for rank, (message, host) in enumerate(told):
        if message is not None:
            everywhere = all(other == message for other, _ in told)
            raise Mistake(message if everywhere else f"rank {rank} on {host}: {message}")
    return result  # type: ignore[return-value]


def check_agreement(facts: dict[str, Any]) -> None:
    """Raise on every rank if `facts` (plain data: digests, versions) differ between ranks.

    Collective: all_gather of the facts.
    """
    everyone = gather_objects(facts)
    for rank, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if other[name] != value:
                raise Mistake(
                    f"the workers do not agree on {name}: rank 0 has {json.dumps(value)}, "
                    f"rank {rank} has {json.dumps(other[name])}; give every node the same data, "
                    "code and packages, then start again"
                )


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """One small Python object of each rank, in rank order. Collective, of `group` if given."""
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered
