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

from trainer.config.model_section import ModelConfig
from trainer.model.history import HistoryTower
from trainer.model.inputs import Inputs
from trainer.model.sequences.tower import SequenceTower

TowerKind = Literal["sum", "mlp"]


class Tower(nn.Module):
    """One side of the model.

    `sum` adds the features' embeddings and has no parameters of its own: O = D. `mlp` concatenates
    them and applies a perceptron with ReLU between its layers: O = `output_dim`.

    Args:
        num_features: how many [S, D] embeddings `forward` is given.
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
    ) -> None:
        super().__init__()
        self.kind = kind
        self.normalise = normalise
        self.dropout = nn.Dropout(dropout)
        self.output_dim = output_dim if kind == "mlp" else dim
        widths = [num_features * dim, *hidden, output_dim] if kind == "mlp" else []
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, features_SD: Sequence[Tensor]) -> Tensor:
        """[S, D] a feature -> [S, O]."""
        if self.kind == "mlp":
            x_SO = self.dropout(torch.cat(list(features_SD), dim=1))
            for index, layer in enumerate(self.layers):
                x_SO = layer(F.relu(x_SO) if index else x_SO)
        else:
            x_SO = self.dropout(torch.stack(list(features_SD)).sum(0))
        return F.normalize(x_SO, dim=1) if self.normalise else x_SO


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


def build_query_tower(model: ModelConfig, inputs: Inputs) -> nn.Module:
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
            )
        case "mf" | "graph" | "mlp":
            return _plain_tower(model, len(inputs.query_dense) + len(inputs.query_keys))


def build_candidate_tower(model: ModelConfig, inputs: Inputs) -> Tower:
    """The tower over `inputs.candidate_keys`."""
    return _plain_tower(model, len(inputs.candidate_dense) + len(inputs.candidate_keys))


def _plain_tower(model: ModelConfig, num_features: int) -> Tower:
    return Tower(
        kind="mlp" if model.tower == "mlp" else "sum",
        num_features=num_features,
        dim=model.dim,
        hidden=model.hidden,
        output_dim=model.output_dim,
        dropout=model.dropout,
        normalise=model.similarity == "cosine",
    )
