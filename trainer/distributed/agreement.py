"""Ranks that fail together, and for one reason.

A rank that raises alone leaves the others waiting in a collective until it times out, and the
user reads the time-out. What may fail on one rank therefore runs through `together`, which makes
the first cause every rank's error; `first_decides` asks rank 0 alone where ranks might see
different things (a network disk shows a new file late); `check_agreement` finds ranks that were
given different things.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch.distributed as dist

from trainer.base.mistake import Mistake, MistakeOfAll, ToldByFirst

T = TypeVar("T")


class ElsewhereError(RuntimeError, ToldByFirst):
    """Another rank failed, by a fault that is not the user's."""


@dataclass(frozen=True)
class _Failure:
    """What went wrong on a rank, as others are told."""

    text: str
    is_mistake: bool
    host: str = field(default_factory=socket.gethostname, compare=False)


def together(action: Callable[[], T]) -> T:
    """Run `action` on every rank; if any raises, all raise the lowest rank's error.

    A rank's own fault keeps its type and traceback there; elsewhere it is an ElsewhereError.

    Collective: all_gather of one short object.

    Raises:
        Mistake: where the lowest rank's error is one; the same message on every rank.
    """
    result, own, error = _attempt(action)
    failures = gather_objects(own)
    for rank, failure in enumerate(failures):
        if failure is None:
            continue
        if failure.is_mistake:
            everywhere = all(other == failure for other in failures)
            where = "" if everywhere else f"rank {rank} on {failure.host}: "
            raise MistakeOfAll(f"{where}{failure.text}")
        if error is not None:
            raise error
        raise ElsewhereError(f"rank {rank} on {failure.host}: {failure.text}")
    return result  # type: ignore[return-value]


def first_decides(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, the only one to run it, or its error. Collective: broadcast.

    The result is small and picklable: names, facts, a verdict.
    """
    result, failure, error = _attempt(action) if dist.get_rank() == 0 else (None, None, None)
    shared: list[Any] = [result, failure]
    dist.broadcast_object_list(shared, src=0)
    result, failure = shared
    if failure is None:
        return result  # type: ignore[return-value]
    if failure.is_mistake:
        raise MistakeOfAll(failure.text)
    raise error or ElsewhereError(f"rank 0 on {failure.host}: {failure.text}")


def _attempt(action: Callable[[], T]) -> tuple[T | None, _Failure | None, Exception | None]:
    try:
        return action(), None, None
    except Mistake as mistake:
        return None, _Failure(str(mistake), is_mistake=True), mistake
    except Exception as error:  # noqa: BLE001 - raised again by the callers, on every rank
        return None, _Failure(f"{type(error).__name__}: {error}", is_mistake=False), error


def check_agreement(facts: dict[str, Any]) -> None:
    """Raise on every rank if `facts` (plain data: digests, versions) differ between ranks.

    Collective: all_gather of the facts.
    """
    everyone = gather_objects(facts)
    for rank, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if other[name] != value:
                raise MistakeOfAll(
                    f"the workers do not agree on {name}: rank 0 has {json.dumps(value)}, "
                    f"rank {rank} has {json.dumps(other[name])}; give every node the same data, "
                    "code and packages, then start again"
                )


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """One small Python object of each rank, in rank order. Collective, of `group` if given."""
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def gather_at_first(value: Any) -> list[Any]:
    """On rank 0 an object of each rank, in rank order; elsewhere nothing. Collective: gather."""
    is_first = dist.get_rank() == 0
    gathered: list[Any] = [None] * (dist.get_world_size() if is_first else 0)
    dist.gather_object(value, gathered if is_first else None, dst=0)
    return gathered
