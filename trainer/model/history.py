"""The query tower that weighs a user's history item by item.

Each position of the list is a feature of its own ("history@0" is the most recent liked item),
looked up in the sharded item table like any other. An empty position is a row of zeros.

Shapes: n rows, D columns of a table, L positions, F other features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losses.kernels.widths import first_columns
from trainer.config.model_section import HistoryPooling


class HistoryTower(nn.Module):
    """SimpleX's user: a gate between what is known of the user and the history's pooled items.

    query = g * (sum of the other features) + (1 - g) * V * pooled history. `mean` gets the history
    as one averaged feature, the last; `attention` gets its positions and weighs them by a small
    network that sees each item and the user. `places` has a V for each position, in place of
    pooling: what was liked last counts for more, and in another way, than what was before it.
    """

    def __init__(
        self, pooling: HistoryPooling, positions: int, dim: int, dropout: float, normalise: bool
    ) -> None:
        super().__init__()
        self.pooling, self.positions, self.normalise = pooling, positions, normalise
        self.columns: int | None = None
        """Columns of the output that are given; None: all."""
        self.dropout = nn.Dropout(dropout)
        pooled = positions if pooling == "places" else 1
        self.values = nn.Linear(pooled * dim, dim, bias=False)
        with torch.no_grad():  # oldest first: each place counts half of the next, more recent one
            shares = [0.5**age * torch.eye(dim) for age in reversed(range(pooled))]
            self.values.weight.copy_(torch.cat(shares, dim=1))
        self.gate = nn.Parameter(torch.zeros(()))
        self.keys = nn.Linear(dim, dim) if pooling == "attention" else None

    def forward(self, features_nD: Sequence[Tensor]) -> Tensor:
        """[n, D] a feature, the list's last -> [n, D]."""
        split = len(features_nD) - (1 if self.pooling == "mean" else self.positions)
        user_nD = sum_of(features_nD[:split], features_nD[-1])
        pooled_nP = self._pool(features_nD[split:], user_nD)
        gate = torch.sigmoid(self.gate)
        query_nD = self.dropout(gate * user_nD + (1 - gate) * self.values(pooled_nP))
        return first_columns(query_nD, self.columns, self.normalise)

    def _pool(self, history_nD: Sequence[Tensor], user_nD: Tensor) -> Tensor:
        """[n, P]: P = D, or positions x D."""
        if self.pooling == "mean":
            return history_nD[0]
        if self.keys is None:
            return torch.cat(list(history_nD), dim=1)
        token_nLD = torch.stack(list(history_nD), dim=1)
        score_nL = (torch.tanh(self.keys(token_nLD)) * user_nD.unsqueeze(1)).sum(2)
        share_nL = torch.softmax(score_nL.masked_fill(is_empty(token_nLD), -1e9), dim=1)
        return (share_nL.unsqueeze(2) * token_nLD).sum(1)


def sum_of(features_nD: Sequence[Tensor], like: Tensor) -> Tensor:
    """The features' sum; zeros where there is none."""
    return torch.stack(list(features_nD)).sum(0) if features_nD else torch.zeros_like(like)


def is_empty(token_nLD: Tensor) -> Tensor:
    """Positions without an item [n, L]: an empty bag is exactly zero."""
    return (token_nLD == 0).all(dim=2)
