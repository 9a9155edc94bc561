"""One optimizer over both worlds: fused ones of the tables, AdamW of the towers, one schedule."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from trainer.config.optimizer_section import OptimizerConfig


def build_optimizer(model: DistributedModelParallel, config: OptimizerConfig) -> CombinedOptimizer:
    """The sharded model's optimizers under one handle.

    The tables' rows are updated inside the backward pass; their part of `step()` only passes the
    learning rate on.
    """
    parts = [("tables", model.fused_optimizer)]
    dense = {
        name: parameter
        for name, parameter in in_backward_optimizer_filter(model.named_parameters())
        if parameter.requires_grad  # the towers' average has none
    }
    if dense:
        parts.append(("towers", _tower_optimizer(dense, config)))
    return CombinedOptimizer(parts)


def _tower_optimizer(
    dense: dict[str, nn.Parameter], config: OptimizerConfig
) -> KeyedOptimizerWrapper:
    """AdamW with its state made, for a checkpoint to be loaded into it.

    TorchRec makes the state by a real step on gradients of zero: at a rate of zero, so that no
    weight decays, and the steps counted are set back, so that the first true step is the first.
    """
    decayed = [value for value in dense.values() if value.ndim > 1]
    others = [value for value in dense.values() if value.ndim <= 1]
    groups = [
        {"params": values, "weight_decay": decay}
        for values, decay in ((decayed, config.tower_weight_decay), (others, 0.0))
        if values
    ]
    towers = KeyedOptimizerWrapper(dense, lambda _: torch.optim.AdamW(groups, lr=0.0))
    towers.init_state()
    for state in towers.state.values():
        state["step"].zero_()
    for group in towers.param_groups:
        group["lr"] = config.tower_learning_rate
    towers.zero_grad()
    return towers


class Schedule:
    """Learning rates as a function of the step, so that a resumed run needs no state for them."""

    def __init__(
        self, optimizer: CombinedOptimizer, config: OptimizerConfig, total_steps: int
    ) -> None:
        self._groups = [
            (group, config.table_learning_rate if name == "tables" else config.tower_learning_rate)
            for name, part in optimizer.optimizers
            for group in part.param_groups
        ]
        self._kind: Literal["constant", "linear", "cosine"] = config.schedule
        self._warmup_steps = config.warmup_steps
        self._total_steps = total_steps

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at `step` (0-based)."""
        if step < self._warmup_steps:
            return (step + 1) / self._warmup_steps
        length = max(self._total_steps - self._warmup_steps, 1)
        progress = min((step - self._warmup_steps) / length, 1.0)
        match self._kind:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - progress
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * progress))

    def set_step(self, step: int) -> None:
        """Set the learning rates for `step`; call before the step's backward pass."""
        for group, peak in self._groups:
            group["lr"] = peak * self.factor(step)
