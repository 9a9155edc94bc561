"""A new run's first values from another run's checkpoint: `train --start-from RUN`.

Rows of tables are taken by id, with what their optimizer gathered; towers, and everything else that
is dense, by name and shape. What does not agree keeps the first values of a new run, and so do rows
of ids that RUN did not know. All of it holds for any number of ranks and sharding on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from embeddings.sharding import initialise, sharded_weights
from embeddings.tables import Table
from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet
from trainer.config.sections import Config
from trainer.distributed.ranks import Ranks
from trainer.model.trained import state_of
from trainer.run.checkpoint_facts import Facts
from trainer.run.checkpoint_read import Found, OnBytes, load, misfit, newest_sound
from trainer.run.folder import RunFolder
from trainer.run.origin import Origin

TABLES = "model.embeddings.embedding_bags."
TABLE_STATES = "optimizer.state.tables.embeddings.embedding_bags."
TOWERS, AVERAGED = "model.head.towers.", "model.head.averaged."
TOWER_STATES = "optimizer.state.towers."
ESTIMATOR, QUEUE = "model.head.task.correction.", "model.head.task.queue."
AVERAGE = "average of the towers"
PARTS = (
    (f"{TOWERS}query.", "query tower"),
    (f"{TOWERS}candidate.", "candidate tower"),
    (f"{TOWERS}dense.", "numbers and vectors"),
    (AVERAGED, AVERAGE),
    (TOWER_STATES, "optimizer of the towers"),
    ("model.head.task.loss.", "learned temperature"),
    (ESTIMATOR, "frequencies of items"),
    (QUEUE, "queue of candidates"),
)
"""What names begin with, and what a person calls them."""


@dataclass(frozen=True)
class Taken:
    """What a run was started from."""

    origin: Origin
    told: str
    """A table: what was taken, in part, or not, and why."""
    found: Found
    """Its checkpoint."""


def start_from(
    run: str,
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    config: Config,
    trained: Mapping[str, Tensor],
    ranks: Ranks,
    on_bytes: OnBytes,
) -> Taken:
    """Fill a model that was just built from RUN's best checkpoint, else its newest. Collective.

    Args:
        trained: by table, the rows that training looks up, bool [known rows]: those that RUN never
            trained, and has as zeros, begin as noise.

    Raises:
        Mistake: where RUN has no sound checkpoint, or no table of it fits.
    """
    found = newest_sound(  # collective
        RunFolder(run).checkpoints,
        ranks,
        reads=lambda name: not name.startswith(QUEUE),
        best=True,
        on_bytes=on_bytes,
    )
    if found is None:
        raise Mistake(f"--start-from {run}: it has no finished checkpoint any more; train it again")
    then = Config.from_json(found.facts.config)
    if not _why_no_estimate(then, config):
        model.module.head.task.correction.restore_buckets(found.facts.streaming_buckets)
    state = state_of(model, optimizer)
    flat, _ = flatten_state_dict(state)
    reasons = _reasons(flat, found.facts, then, config)
    tables = model.module.inputs.tables
    _check_any(run, tables, reasons)
    _fill(found, model, flat, reasons, on_bytes)  # collective
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if model.module.head.averaged is not None and not _averages(found.facts):
        model.module.head.averaged.load_state_dict(model.module.head.towers.state_dict())
    whole = {table.name: table.num_rows for table in tables}
    initialise(model, tables, config.training.seed, trained, from_row=whole)
    told = _told(run, found.facts, flat, reasons, tables)
    return Taken(Origin(run, found.facts.step), told, found)


def _check_any(run: str, tables: Sequence[Table], reasons: Mapping[str, str | None]) -> None:
    """Raise Mistake where all would begin anew under the name of what was learnt."""
    refused = {table.name: reasons[f"{TABLES}{table.name}.weight"] for table in tables}
    if tables and None not in refused.values():
        name, reason = next(iter(refused.items()))
        raise Mistake(
            f"--start-from {run}: none of its tables fits this run ({name}: {reason}); leave the "
            "preset and settings of the model out, to have that run's, or begin without it"
        )


def _averages(facts: Facts) -> bool:
    return any(name.startswith(AVERAGED) for name in facts.tensors)


def _source(name: str, facts: Facts, averaging: bool) -> str:
    """The saved tensor that fills `name`: without an average of its own, the towers take RUN's."""
    if name.startswith(TOWERS) and not averaging and _averages(facts):
        return AVERAGED + name.removeprefix(TOWERS)
    return name


def _reasons(
    flat: Mapping[str, Any], facts: Facts, then: Config, now: Config
) -> dict[str, str | None]:
    """By name, why a value starts anew; None: it is taken."""
    averaging = bool(now.optimizer.tower_averaging)
    reasons: dict[str, str | None] = {}
    for name, value in flat.items():
        saved = facts.tensors.get(_source(name, facts, averaging))
        reasons[name] = _never(name, then, now) or misfit(
            saved, value, by_row=name.startswith((TABLES, TABLE_STATES))
        )
    units: dict[str, str] = {}
    for name, reason in reasons.items():
        if reason is not None:
            units.setdefault(_unit(name), reason)
    reasons = {name: units.get(_unit(name)) for name in flat}
    for name in flat:
        of = _value_of(name)
        if of is not None and reasons[of] is not None:
            reasons[name] = "goes with its values, which start anew"
    return reasons


def _unit(name: str) -> str:
    """What `name` is taken together with, or not at all."""
    if name.startswith(ESTIMATOR):
        return ESTIMATOR
    if f"{TOWERS}dense." in name.replace(AVERAGED, TOWERS):  # a scale, and what learned on it
        return ".".join(name.split(".")[:6])
    return f"{name.removesuffix('bias')}weight" if name.endswith("bias") else name


def _never(name: str, then: Config, now: Config) -> str | None:
    """Why `name` is not taken whatever its shape."""
    if name.startswith(QUEUE):
        return "it fills again"
    if name.startswith(ESTIMATOR):
        return _why_no_estimate(then, now)
    if name.startswith(TABLE_STATES):
        kinds = then.optimizer.tables, now.optimizer.tables
        if kinds[0] != kinds[1]:
            return f"optimizer.tables was {kinds[0]}, now {kinds[1]}"
        if kinds[0] == "adam":
            return "adam's moments go with its count of steps, which begins anew"
    return None


def _why_no_estimate(then: Config, now: Config) -> str | None:
    """Why an estimate of how often a step draws each item says nothing of this run's steps."""
    if then.training.global_batch_size != now.training.global_batch_size:
        return "training.global_batch_size is another"
    return None if then.negatives == now.negatives else "negatives are others"


def _value_of(name: str) -> str | None:
    """The parameter whose optimizer's state `name` is."""
    if name.startswith(TABLE_STATES):
        return f"{TABLES}{name.removeprefix(TABLE_STATES).partition('.')[0]}.weight"
    if name.startswith(TOWER_STATES):
        return f"model.{name.removeprefix(TOWER_STATES).rpartition('.')[0]}"
    return None


@torch.no_grad()
def _fill(
    found: Found,
    model: DistributedModelParallel,
    flat: Mapping[str, Any],
    reasons: Mapping[str, str | None],
    on_bytes: OnBytes,
) -> None:
    """Load what is taken, each value under the name it was saved by. Collective."""
    averaging = model.module.head.averaged is not None
    taken = {
        _source(name, found.facts, averaging): flat[name]
        for name, reason in reasons.items()
        if reason is None
    }
    # Where RUN has its row for unknown ids, a table that has grown has a new id's.
    replaced = {
        table.name: found.facts.known_rows[table.name]
        for table in model.module.inputs.tables
        if reasons[f"{TABLES}{table.name}.weight"] is None
    }
    kept: list[tuple[Tensor, Tensor]] = []
    for name, weight in sharded_weights(model).items():
        for row in _rows_here(weight, replaced.get(name.split(".")[-2])):
            kept.append((row, row.clone()))
    load(found, taken, on_bytes)  # collective
    for row, first_value in kept:
        row.copy_(first_value)


def _rows_here(weight: ShardedTensor, row: int | None) -> list[Tensor]:
    """A table's row, where it lies on this rank."""
    return [
        piece.tensor[row - int(piece.metadata.shard_offsets[0])]
        for piece in weight.local_shards()
        if row is not None and 0 <= row - int(piece.metadata.shard_offsets[0]) < len(piece.tensor)
    ]


def _told(
    run: str,
    facts: Facts,
    flat: Mapping[str, Any],
    reasons: Mapping[str, str | None],
    tables: Sequence[Table],
) -> str:
    """The table that the user is shown."""
    sheet = Sheet("what", "taken", "why not", title=f"starting from {run}, step {facts.step:,}")
    for table in tables:
        weight, states = f"{TABLES}{table.name}.weight", f"{TABLE_STATES}{table.name}."
        _add_rows(sheet, f"table {table.name}", reasons[weight], facts, table)
        state = next((name for name in flat if name.startswith(states)), None)
        if state is not None:
            _add_rows(sheet, f"table {table.name}, optimizer", reasons[state], facts, table)
    for beginning, title in PARTS:
        names = [name for name in flat if name.startswith(beginning)]
        if names:
            _add_part(sheet, title, {name.removeprefix(beginning): reasons[name] for name in names})
    for title in _unused(facts, flat, tables):
        if title == AVERAGE and any(
            reason is None for name, reason in reasons.items() if name.startswith(TOWERS)
        ):
            sheet.add(title, "as the towers", "this run has no average")
        else:
            sheet.add(title, "no", "this run has none")
    shown = StringIO()
    sheet.print(shown)
    return shown.getvalue().rstrip("\n")


def _add_rows(sheet: Sheet, what: str, reason: str | None, facts: Facts, table: Table) -> None:
    if reason is not None:
        sheet.add(what, "no", reason)
        return
    old, new = facts.known_rows[table.name], table.known_rows
    if old == new:
        sheet.add(what, f"all {new:,} rows")
    else:
        sheet.add(what, f"{old:,} of {new:,} rows", "the others are new")


def _add_part(sheet: Sheet, what: str, reasons: Mapping[str, str | None]) -> None:
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    if not refused:
        sheet.add(what, "all")
        return
    number = len(reasons) - len(refused)
    taken = f"{number:,} of {len(reasons):,} tensors" if number else "no"
    different = set(refused.values())
    name, reason = next(iter(refused.items()))
    sheet.add(what, taken, reason if len(different) == 1 else f"{name} {reason}")


def _unused(facts: Facts, flat: Mapping[str, Any], tables: Sequence[Table]) -> list[str]:
    """Parts of RUN that this run has no place for."""
    known = {table.name for table in tables}
    unused = [f"table {name}" for name in facts.known_rows if name not in known]
    for beginning, title in PARTS:
        saved = any(name.startswith(beginning) for name in facts.tensors)
        if saved and not any(name.startswith(beginning) for name in flat):
            unused.append(title)
    return unused
