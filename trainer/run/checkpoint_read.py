"""Checkpoints found, verified and read: the newest sound one, on any number of ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException

from trainer.base.mistake import Mistake
from trainer.base.transient import patiently
from trainer.distributed.agreement import first_decides, gather_objects, together
from trainer.distributed.ranks import Ranks
from trainer.files.json_files import committed, step_of
from trainer.files.storage import StoragePath
from trainer.run.checkpoint_facts import (
    DTYPE_NAMES,
    Facts,
    NotWholeError,
    Piece,
    SavedTensor,
    read_facts,
)
from trainer.run.shard_files import ShardReader, sound

logger = logging.getLogger(__name__)
OnBytes = Callable[[int, int], None]
"""Told the bytes read so far, and of how many."""


def silent(done: int, total: int) -> None:
    """Nobody asks."""


@dataclass(frozen=True)
class Found:
    """A sound checkpoint, and those passed over on the way to it."""

    path: StoragePath
    facts: Facts
    damaged: frozenset[int] = frozenset()
    """Steps of the checkpoints that are damaged."""


def newest_sound(
    folder: StoragePath,
    ranks: Ranks,
    reads: Callable[[str], bool],
    best: bool = False,
    on_bytes: OnBytes = silent,
) -> Found | None:
    """The newest checkpoint whose tensors match their digests; None: there is no checkpoint.

    Collective: rank 0 lists the folder, the ranks share the reading and agree on the verdict.

    Args:
        reads: names of the tensors that are going to be read: no others are verified.
        best: take the one that was best on the validation split before all others, if there is one.

    Raises:
        Mistake: where there are checkpoints and none is sound, or one is of an earlier form.
    """
    names = first_decides(lambda: _in_order(folder, best))  # collective
    damaged: dict[int, str] = {}
    for name in names:
        path = folder / name
        facts = first_decides(partial(_facts_or_reason, path))  # collective
        if isinstance(facts, Facts):
            bad = _damaged_files(path, facts, ranks, reads, on_bytes)  # collective
            if not bad:
                return Found(path, facts, frozenset(damaged))
            reason = ", ".join(bad)
        else:
            reason = facts
        damaged[step_of(path)] = reason
        if ranks.is_first:
            logger.error("checkpoint %s is damaged (%s): the one before it is used", path, reason)
    if damaged:
        raise Mistake(
            f"{folder}: none of the {len(damaged)} checkpoints is whole: "
            + "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            + "; restore the files, or begin anew with another --out"
        )
    return None


def _in_order(folder: StoragePath, best: bool) -> list[str]:
    """Names of finished checkpoints, those to be tried first before the others."""
    paths = patiently(lambda: committed(folder), f"listing {folder}")[::-1]
    if best:
        newest = (facts for path in paths if isinstance(facts := _facts_or_reason(path), Facts))
        best_step = next((facts.validation.best_step for facts in newest), None)
        paths.sort(key=lambda path: step_of(path) != best_step)
    return [path.name for path in paths]


def _facts_or_reason(path: StoragePath) -> Facts | str:
    try:
        return patiently(lambda: read_facts(path), f"reading {path}")
    except NotWholeError as error:
        return str(error)


def _damaged_files(
    path: StoragePath,
    facts: Facts,
    ranks: Ranks,
    reads: Callable[[str], bool],
    on_bytes: OnBytes,
) -> list[str]:
    """Files with pieces of wanted tensors that are not as they were written. Collective."""
    wanted = [saved for name, saved in facts.tensors.items() if reads(name)]
    pieces = sorted((piece for saved in wanted for piece in saved.pieces), key=_place)
    total, done = sum(piece.end - piece.begin for piece in pieces), 0

    def count(bytes_read: int) -> None:
        nonlocal done
        done += bytes_read * ranks.world_size
        on_bytes(min(done, total), total)

    def check() -> list[str]:
        own = pieces[ranks.rank :: ranks.world_size]
        return [piece.file for piece in own if not sound(path, piece, count)]

    bad = together(check)  # collective
    return sorted({file for part in gather_objects(bad) for file in part})  # collective


def _place(piece: Piece) -> tuple[str, int]:
    return piece.file, piece.begin


class _TensorPlanner(dcp.DefaultLoadPlanner):
    """DCP's planner, for tensors alone: what it does with bytes is to unpickle them."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise AssertionError(f"{read_item} is no tensor")


def load(found: Found, state: dict[str, Any], on_bytes: OnBytes = silent) -> None:
    """Fill `state`'s tensors in place from a checkpoint of any world size. Collective.

    A tensor with more rows than were saved (a table that has grown) keeps its own values there.

    Raises:
        Mistake: where the checkpoint lacks a tensor, or has it in another shape or type.
        OSError: where the storage fails.
    """
    flat, _ = flatten_state_dict(state)
    for name, value in flat.items():
        _check_fits(found, name, value)
    total, done = sum(found.facts.tensors[name].bytes for name in flat), 0

    def count(bytes_read: int) -> None:  # of this rank
        nonlocal done
        done += bytes_read
        on_bytes(min(done, total), total)

    sizes = {name: value.size() for name, value in flat.items()}
    tensors = {name: found.facts.tensors[name] for name in flat}
    reader = ShardReader(found.path, tensors, sizes, count)
    try:
        dcp.load(
            state,
            storage_reader=reader,
            planner=_TensorPlanner(),
            no_dist=not dist.is_initialized(),
        )
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        raise OSError(f"{found.path} cannot be read: rank {rank}: {cause}") from error


def _check_fits(found: Found, name: str, value: Any) -> None:
    reason = misfit(found.facts.tensors.get(name), value, by_row=True)
    if reason is not None:
        raise Mistake(
            f"{found.path}: {name!r} {reason}, and this model or its optimizer needs it: it was "
            "trained with other settings; use those of the run's config.json"
        )


def misfit(saved: SavedTensor | None, value: Any, by_row: bool) -> str | None:
    """Why `value`, a tensor or ShardedTensor, cannot be filled with a saved one; None: it can.

    by_row: it may have more rows than were saved.
    """
    if saved is None:
        return "is not there"
    size, dtype = tuple(value.size()), DTYPE_NAMES[value.dtype]
    alike = len(size) == len(saved.shape) and size[1:] == saved.shape[1:]
    grown = by_row and alike and len(size) > 0 and size[0] > saved.shape[0]
    if dtype == saved.dtype and (size == saved.shape or grown):
        return None
    return f"is {saved.dtype} {list(saved.shape)} there, {dtype} {list(size)} here"
