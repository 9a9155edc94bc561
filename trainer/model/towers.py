"""The towers: pooled embeddings of one side's features to one vector a row.

Shapes: S rows, D columns of a table, O columns of a tower's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.kernels.widths import first_columns
from trainer.config.model_section import ModelConfig
from trainer.model.history import HistoryTower
from trainer.model.inputs import Inputs
from trainer.model.sequences.tower import SequenceTower

TowerKind = Literal["sum", "mlp", "dcn"]


class CrossLayer(nn.Module):
    """x0 * (W x + b) + x: each column of x crossed with each of the tower's input (Wang et al.
    2021, "DCN V2"). All [S, X]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, first_SX: Tensor, x_SX: Tensor) -> Tensor:
        crossed: Tensor = first_SX * self.linear(x_SX) + x_SX
        return crossed


class ResidualLayer(nn.Module):
    """A hidden layer that adds to what goes into it: x + W relu(LayerNorm(x)); where widths differ
    x goes through a matrix."""

    def __init__(self, width: int, output: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, output)
        same = width == output
        self.skip: nn.Module = nn.Identity() if same else nn.Linear(width, output, bias=False)

    def forward(self, x_SX: Tensor) -> Tensor:
        out: Tensor = self.skip(x_SX) + self.linear(F.relu(self.norm(x_SX)))
        return out


class Tower(nn.Module):
    """One side of the model.

    `sum` adds the features' embeddings and has no parameters of its own: O = D. `mlp` concatenates
    them and applies a perceptron with ReLU between its layers: O = `output_dim`. `dcn` crosses them
    with one another before that.

    Args:
        num_features: how many [S, D] embeddings `forward` is given.
        residual: hidden layers after the first add to what goes into them; before the last there is
            a LayerNorm, too.
        cross_layers: of `dcn`.
        normalise: divide each output by its L2 norm (cosine similarity).
    """

    def __init__(
        self,
        kind: TowerKind,
        num_features: int,
        dim: int,
        hidden: Sequence[int],
        output_dim: int,
        dropout: float,
        normalise: bool,
        residual: bool = False,
        cross_layers: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.residual = kind, residual
        self.normalise = normalise
        self.columns: int | None = None
        """Columns of the output that are given; None: all."""
        self.dropout = nn.Dropout(dropout)
        self.output_dim = dim if kind == "sum" else output_dim
        width = num_features * dim
        widths = [] if kind == "sum" else [width, *hidden, output_dim]
        self.crosses = nn.ModuleList(CrossLayer(width) for _ in range(cross_layers))
        layers: list[nn.Module] = [nn.Linear(a, b) for a, b in pairwise(widths)]
        if residual:
            layers[1:-1] = [ResidualLayer(a, b) for a, b in pairwise(widths[1:-1])]
            layers[-1] = nn.Sequential(nn.LayerNorm(widths[-2]), nn.ReLU(), layers[-1])
        self.layers = nn.ModuleList(layers)

    def forward(self, features_SD: Sequence[Tensor]) -> Tensor:
        """[S, D] a feature -> [S, O]."""
        if self.kind == "sum":
            x_SO = self.dropout(torch.stack(list(features_SD)).sum(0))
        else:
            x_SO = first_SX = self.dropout(torch.cat(list(features_SD), dim=1))
            for cross in self.crosses:
                x_SO = cross(first_SX, x_SO)
            for index, layer in enumerate(self.layers):
                x_SO = layer(F.relu(x_SO) if index and not self.residual else x_SO)
        return first_columns(x_SO, self.columns, self.normalise)


def zeros_where_nothing_is_known(
    output_SO: Tensor, features_SD: Sequence[Tensor], evidence_S1: Sequence[Tensor] = ()
) -> Tensor:
    """The tower's output, with zeros for rows of which nothing is known.

    They are ids that training never met, without a history, an attribute that it met, a number or a
    vector: what a tower makes of zeros is its biases, alike for all of them, and no statement about
    them.

    Args:
        features_SD: looked-up embeddings; zeros tell nothing.
        evidence_S1: whether each number or vector is there, bool.
    """
    told = [(feature_SD != 0).any(1, keepdim=True) for feature_SD in features_SD]
    return output_SO * torch.cat([*told, *evidence_S1], dim=1).any(1, keepdim=True)


def build_query_tower(model: ModelConfig, inputs: Inputs) -> Tower | HistoryTower | SequenceTower:
    """The tower over `inputs.query_keys`."""
    normalise = model.similarity == "cosine"
    match model.tower:
        case "history":
            return HistoryTower(
                model.history_pooling,
                inputs.positions("history"),
                model.dim,
                model.dropout,
                normalise,
            )
        case "sequence":
            return SequenceTower(
                model.block,
                inputs.sequence_length,
                model.dim,
                model.sequence_layers,
                model.sequence_heads,
                model.dropout,
                model.init_std,
                normalise,
                inputs.marks,
            )
        case "mf" | "mlp" | "dcn":
            return _plain_tower(model, len(inputs.query_dense) + len(inputs.query_keys))


def build_candidate_tower(model: ModelConfig, inputs: Inputs) -> Tower:
    """The tower over `inputs.candidate_keys`."""
    return _plain_tower(model, len(inputs.candidate_dense) + len(inputs.candidate_keys))


def _plain_tower(model: ModelConfig, num_features: int) -> Tower:
    return Tower(
        kind=model.tower if model.tower in ("mlp", "dcn") else "sum",  # type: ignore[arg-type]
        num_features=num_features,
        dim=model.dim,
        hidden=model.hidden,
        output_dim=model.output_dim,
        dropout=model.dropout,
        normalise=model.similarity == "cosine",
        residual=model.residual,
        cross_layers=model.cross_layers if model.tower == "dcn" else 0,
    )
