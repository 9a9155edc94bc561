"""NaN and infinity: found at the step they appear, named, and kept out of every checkpoint.

Three things are looked at on the device in each step: the loss, the gradient that goes back to each
table, and the gradient of each tower. Sums decide, since one NaN or infinity makes a sum one. The
verdict reaches all ranks by an all-reduce of one number that runs beside the next step, so nothing
waits for the device, and the run stops one step later. Tables are looked at once more, whole,
before each checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.sparse.jagged_tensor import KeyedTensor

from trainer.distributed.agreement import gather_objects
from trainer.model.inputs import Inputs

REMEDY = (
    "no checkpoint was made of it. Lower optimizer.table_learning_rate or "
    "optimizer.tower_learning_rate, raise loss.temperature, or look for extreme values in the data"
)


class NonFiniteError(RuntimeError):
    """Something became NaN or infinite; the message names what, the step and the rank."""


@dataclass(frozen=True)
class Finding:
    """The first thing of one rank that was not finite."""

    step: int
    what: str
    statistics: str
    """The loss's statistics at that step, and what they say."""


class FiniteWatch:
    """Watches one rank's loss and gradients while it trains.

    Call `end_step` after each step. All ranks call the same methods: an all-reduce a step.
    """

    def __init__(self, head: nn.Module, inputs: Inputs, device: torch.device) -> None:
        self._alarm = Alarm(device)
        self._device = device
        self._table_of = {key: t.name for t in inputs.tables for key in t.features}
        tables = [table.name for table in inputs.tables]
        towers = dict.fromkeys(
            _tower(name) for name, value in head.named_parameters() if value.requires_grad
        )
        self._names = (
            *(f"the gradient of table {name!r}" for name in tables),
            *(f"the gradient of the {tower}" for tower in towers),
        )
        self._tables = tables
        self._column_table: Tensor | None = None
        self._sums = self._zeros()
        self._steps: list[Tensor] = []
        for name, parameter in head.named_parameters():
            if parameter.requires_grad:
                place = self._names.index(f"the gradient of the {_tower(name)}")
                # Before the ranks' gradients are averaged: whose it is can still be told.
                parameter.register_hook(_adder(self, place))
        head.register_forward_pre_hook(self._before_head)

    def end_step(self, loss: Tensor, stop_asked: bool) -> bool:
        """Whether all ranks must look: in the step before this one, any of them met something that
        is not finite, or was asked to stop. Collective, and does not wait."""
        rung = self._alarm.rung()
        self._steps.append(self._sums)
        finite = torch.isfinite(loss.detach() + self._sums.sum())
        self._alarm.push(finite & (not stop_asked))
        self._sums = self._zeros()
        return rung

    def find(self, last_step: int, values: list[dict[str, float]]) -> Finding | None:
        """The first that was not finite since the last call. One device-to-host sync.

        Args:
            values: the loss and its statistics in each step up to `last_step`.
        """
        sums = torch.stack(self._steps).tolist()  # device-to-host sync
        self._steps = []
        for offset, (statistics, parts) in enumerate(zip(values, sums, strict=True)):
            bad = [n for n, part in zip(self._names, parts, strict=True) if not math.isfinite(part)]
            if not math.isfinite(statistics["loss"]):
                bad = ["the loss"]  # the gradients follow from it
            if bad:
                step = last_step - len(values) + 1 + offset
                return Finding(step, " and ".join(bad), describe(statistics))
        return None

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self._names), device=self._device)

    def _before_head(self, head: nn.Module, arguments: tuple) -> None:
        if not head.training:
            return
        pooled: KeyedTensor = arguments[0]
        values_SX = pooled.values()
        if self._column_table is None:
            self._column_table = self._columns(pooled)
        if values_SX.requires_grad:
            values_SX.register_hook(self._add_columns)

    def _columns(self, pooled: KeyedTensor) -> Tensor:
        """The number of the table that each pooled column comes from, [sum of D]."""
        tables = [self._tables.index(self._table_of[key]) for key in pooled.keys()]  # noqa: SIM118
        widths = torch.tensor(pooled.length_per_key())
        return torch.tensor(tables).repeat_interleave(widths).to(self._device)

    def _add_columns(self, gradient_SX: Tensor) -> None:
        assert self._column_table is not None
        sums_X = gradient_SX.detach().sum(dim=0, dtype=torch.float32)
        self._sums.index_add_(0, self._column_table, sums_X)

    def add(self, place: int, gradient: Tensor) -> None:
        """Count a tower's gradient in."""
        self._sums[place] += gradient.detach().sum(dtype=torch.float32)


def _adder(watch: FiniteWatch, place: int) -> Any:
    def hook(gradient: Tensor) -> None:
        watch.add(place, gradient)

    return hook


def _tower(parameter: str) -> str:
    """Which part of the head a parameter belongs to, in the user's words."""
    if parameter.startswith("towers.query"):
        return "query tower"
    return "candidate tower" if parameter.startswith("towers.candidate") else "loss's parameters"


class Alarm:
    """One bit of each rank's step, known to all ranks when the next step ends.

    `push` starts an all-reduce; `rung` reads the one that was started a step ago, which is long
    done: on a GPU its result was copied to the host behind it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._fine: Tensor | None = None
        self._work: Any = None

    def push(self, fine: Tensor) -> None:
        """Start telling all ranks whether this step was fine (0-d bool). Collective."""
        told = fine.to(torch.int32)
        self._work = dist.all_reduce(told, op=dist.ReduceOp.MIN, async_op=True)  # collective
        self._fine = told
        if self._on_gpu:
            self._work.wait()  # the stream waits, not the host
            self._fine = torch.empty((), dtype=torch.int32, pin_memory=True)
            self._fine.copy_(told, non_blocking=True)
            self._work = torch.cuda.Event()
            self._work.record()

    def rung(self) -> bool:
        """Whether any rank's last `push` was not fine; the same on all ranks."""
        if self._fine is None:
            return False
        if self._on_gpu:
            self._work.synchronize()  # of the step before: the device is in the next one
        else:
            self._work.wait()
        return not bool(self._fine)


def raise_together(finding: Finding | None) -> None:
    """Raise the earliest finding of all ranks, the same on each. Collective: all-gather."""
    findings = gather_objects(finding)
    steps = [found.step for found in findings if found is not None]
    if not steps:
        return
    first = {r: f for r, f in enumerate(findings) if f is not None and f.step == min(steps)}
    ranks = ", ".join(str(rank) for rank in first)
    found = next(iter(first.values()))
    plural = "s" if len(first) > 1 else ""
    verb = "are" if " and " in found.what else "is"
    raise NonFiniteError(
        f"{found.what} {verb} not finite at step {found.step} on rank{plural} {ranks} "
        f"({found.statistics}); {REMEDY}"
    )


def describe(statistics: Mapping[str, float]) -> str:
    """The loss and what else was not finite at a step, or all that was, and what it points to."""
    spoiled = [name for name, value in statistics.items() if not math.isfinite(value)]
    shown = ", ".join(
        f"{name} {statistics[name]:.4g}" for name in ("loss", *spoiled) if name in statistics
    )
    advice = None
    if any(name.startswith("logq") for name in spoiled):
        advice = "look at the item counts: an item drawn has a count of 0"
    elif "temperature" in spoiled or "negative_temperature" in spoiled:
        advice = "the learned temperature diverged: fix it, or lower its learning rate"
    return shown if advice is None else f"{shown}; {advice}"


def check_tables(tables: Mapping[str, ShardedTensor], step: int) -> None:
    """Raise NonFiniteError on all ranks if any table's row is not finite. Collective: all-gather.

    One pass over this rank's shards and one device-to-host sync; before each checkpoint.
    """
    sums = [
        torch.stack([piece.tensor.detach().sum(dtype=torch.float32) for piece in shards]).sum()
        for table in tables.values()
        if (shards := table.local_shards())
    ]
    held = [name for name, table in tables.items() if table.local_shards()]
    totals = torch.stack(sums).tolist() if sums else []  # device-to-host sync
    bad = [name for name, total in zip(held, totals, strict=True) if not math.isfinite(total)]
    for rank, names in enumerate(gather_objects(bad)):  # collective
        if names:
            raise NonFiniteError(
                f"table {names[0].split('.')[-2]!r} has rows that are not finite on rank {rank} "
                f"after step {step}; {REMEDY}"
            )
