"""The towers: pooled embeddings of one side's features to one vector a row.

Shapes: S rows or bags, U of them encoded, D columns of a table, O columns of a tower's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from losses.kernels.widths import first_columns
from trainer.config.model_section import ModelConfig
from trainer.data.packing import Packed
from trainer.model.dense import DenseInputs
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


class Towers(nn.Module):
    """Pooled embeddings of both sides to queries and candidates.

    One call splits the pooled values once, so that the backward pass concatenates once.
    """

    def __init__(self, model: ModelConfig, inputs: Inputs) -> None:
        super().__init__()
        self.inputs, self.dim = inputs, model.dim
        self.query = build_query_tower(model, inputs)
        self.candidate = build_candidate_tower(model, inputs)
        self.dense = DenseInputs(inputs.dense, model.dim, model.init_std)

    def split(
        self, pooled: KeyedTensor, features: KeyedJaggedTensor, dense: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """[S, sum of widths] -> {key: [S, D]}, sums of several values turned into their mean, rows
        of narrower tables filled up with zeros; dense features embedded; a sequence's items put
        together, where they are read by more than their ids."""
        keys = pooled.keys()
        parts = dict(zip(keys, pooled.values().split(pooled.length_per_key(), dim=1), strict=True))
        for key in self.inputs.mean_keys:
            count_S = features[key].lengths().clamp(min=1).to(parts[key].dtype)
            parts[key] = parts[key] / count_S.unsqueeze(1)
        for key, part in parts.items():
            if part.shape[1] < self.dim:
                parts[key] = F.pad(part, (0, self.dim - part.shape[1]))
        parts |= self.dense.embed(dense)
        if self.inputs.reads_events:
            parts["history"] = self._events(parts, dense)
        return parts

    def _events(self, parts: Mapping[str, Tensor], dense: Mapping[str, Tensor]) -> Tensor:
        """The items of sequences by id and attributes together, [S, D]; zeros for those of which
        nothing is known, and after the last."""
        looked_up = [parts[key] for key in ("history", *self.inputs.event_keys)]
        told = {key: dense[key] for key in self.inputs.event_dense if key in dense}
        stride = looked_up[0].shape[0]
        read = [F.pad(parts[key], (0, 0, 0, stride - parts[key].shape[0])) for key in told]
        there = [F.pad(e, (0, 0, 0, stride - e.shape[0])) for e in self.dense.evidence(told)]
        item_SD = torch.stack([*looked_up, *read]).sum(0)
        return zeros_where_nothing_is_known(item_SD, looked_up, there)

    def encode_queries(
        self, parts: dict[str, Tensor], num_rows: int, sequences: Packed | None = None
    ) -> Tensor:
        """The first `num_rows` bags of the query side, of "history" all -> [num_rows, O]."""
        if sequences is None:
            return self.query([parts[key][:num_rows] for key in self.inputs.query_reads])
        user = [parts[key][:num_rows] for key in self.inputs.user_reads]
        moment = [parts[key][:num_rows] for key in self.inputs.moment_reads]
        return self.query(user, moment, parts["history"], sequences)

    def encode_candidates(
        self,
        parts: dict[str, Tensor],
        bags_U: Tensor | None = None,
        kept_U: Tensor | None = None,
    ) -> Tensor:
        """Bags of the candidate side, by default all of them -> [U, O].

        Args:
            parts: of all bags; dense ones of those alone that are encoded.
            kept_U: bags that see their item's id, bool.
        """
        looked_up = {key: parts[key] for key in self.inputs.candidate_keys}
        if bags_U is not None:
            looked_up = {key: part.index_select(0, bags_U) for key, part in looked_up.items()}
        if kept_U is not None:
            looked_up["item"] = looked_up["item"] * kept_U.unsqueeze(1)
        dense = [parts[key] for key in self.inputs.candidate_dense]
        return self.candidate([*dense, *looked_up.values()])
