"""Numbers and vectors on their way into a tower: each becomes D columns, as a table's rows are.

A number is read as itself (standardised, clipped), as whether it is there, and as how far it goes
through each of the bins between its quantiles (Gorishniy, Rubachev, Babenko 2022, "On Embeddings
for Numerical Features in Tabular Deep Learning": piecewise linear encoding), so that a linear layer
makes any broken line of it. A vector goes through a linear layer and a LayerNorm. What is missing
has a learned vector of its own.

Shapes: n rows, W columns of a vector, Q quantiles, D columns of a table.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data.feature_bags import of_item
from trainer.data.feature_types import Attribute, Scale

MOST_SPREADS = 5.0
"""Standardised numbers are clipped there."""


class NumberInput(nn.Module):
    """A number [n, 1], NaN where missing -> [n, D]."""

    def __init__(self, scale: Scale, dim: int, spread: float) -> None:
        """spread: standard deviation of what comes out at first, that of the tables' rows."""
        super().__init__()
        self.log1p = scale.log1p
        self.register_buffer("mean", torch.tensor(scale.mean, dtype=torch.float32))
        self.register_buffer("spread", torch.tensor(scale.spread, dtype=torch.float32))
        self.register_buffer("bound_Q", torch.tensor(scale.quantiles, dtype=torch.float32))
        self.mean: Tensor
        self.spread: Tensor
        self.bound_Q: Tensor
        self.linear = nn.Linear(len(scale.quantiles) + 1, dim)
        self.missing_D = nn.Parameter(torch.zeros(dim))
        with torch.no_grad():
            self.linear.weight.mul_(spread)
            self.linear.bias.zero_()

    @staticmethod
    def is_there(number_n1: Tensor) -> Tensor:
        """bool [n, 1]."""
        return torch.isfinite(number_n1)

    def forward(self, number_n1: Tensor) -> Tensor:
        there_n1 = self.is_there(number_n1)
        x_n1 = torch.where(there_n1, number_n1.float(), self.mean)
        scaled_n1 = torch.log1p(x_n1.clamp(min=-0.999)) if self.log1p else x_n1
        scaled_n1 = ((scaled_n1 - self.mean) / self.spread).clamp(-MOST_SPREADS, MOST_SPREADS)
        low_Q, high_Q = self.bound_Q[:-1], self.bound_Q[1:]
        through_nQ = ((x_n1 - low_Q) / (high_Q - low_Q).clamp(min=1e-12)).clamp(0, 1)
        above_n1 = (x_n1 > self.bound_Q[-1:]).to(scaled_n1.dtype)
        read_nX = torch.cat([scaled_n1, through_nQ, above_n1], dim=1)
        return torch.where(there_n1, self.linear(read_nX), self.missing_D)


class VectorInput(nn.Module):
    """A vector [n, W], zeros where missing -> [n, D]."""

    def __init__(self, width: int, dim: int, spread: float) -> None:
        """spread: standard deviation of what comes out at first, that of the tables' rows."""
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)
        self.missing_D = nn.Parameter(torch.zeros(dim))
        with torch.no_grad():
            self.norm.weight.fill_(spread)

    @staticmethod
    def is_there(vector_nW: Tensor) -> Tensor:
        """bool [n, 1]."""
        return (vector_nW != 0).any(dim=1, keepdim=True)

    def forward(self, vector_nW: Tensor) -> Tensor:
        there_n1 = self.is_there(vector_nW)
        return torch.where(
            there_n1, self.norm(self.linear(vector_nW.to(self.linear.weight.dtype))), self.missing_D
        )


class DenseInputs(nn.Module):
    """The dense features of both sides, by key."""

    def __init__(self, attributes: Mapping[str, Attribute], dim: int, spread: float) -> None:
        super().__init__()
        self.of = nn.ModuleDict(
            {
                module_name(key): VectorInput(each.width, dim, spread)
                if each.scale is None
                else NumberInput(each.scale, dim, spread)
                for key, each in attributes.items()
            }
        )

    def only(self, keys: Sequence[str]) -> DenseInputs:
        """A copy of some of them, on the CPU, for evaluation."""
        some = DenseInputs({}, 0, 0.0)
        some.of = nn.ModuleDict(
            {module_name(key): copy.deepcopy(self.of[module_name(key)]) for key in keys}
        )
        return some.cpu().eval()

    def embed(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[n, 1 or W] a key -> [n, D] a key."""
        return {key: self._module(key)(each) for key, each in dense.items()}

    def evidence(self, dense: Mapping[str, Tensor]) -> list[Tensor]:
        """bool [n, 1] a key: rows of which it tells something."""
        return [self._module(key).is_there(each) for key, each in dense.items()]

    def _module(self, key: str) -> Any:
        """What is known of a sequence's item goes the way of a candidate's."""
        return self.of[module_name(of_item(key) if key.startswith("event.") else key)]


def module_name(key: str) -> str:
    """A feature key as the name of a module or a table, which has no dots."""
    return key.replace(".", "_")
