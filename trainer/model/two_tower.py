"""The two-tower model: sharded tables, a query tower, a candidate tower, and the training task.

Shapes: B rows of a rank's batch, E further candidates, S = B + E bags, D columns of a table,
O columns of a tower.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from embeddings.tables import build_embedding_bags
from trainer.config.model_section import ModelConfig
from trainer.data.feature_bags import Features
from trainer.model.inputs import Inputs
from trainer.model.sequences.tower import has_known_item
from trainer.model.task import Outputs, RetrievalTask
from trainer.model.towers import Towers, zeros_where_nothing_is_known


class Head(nn.Module):
    """Towers and task: all of the model behind the tables.

    A module of its own, so that the pipeline's tracer takes it as one leaf: what is inside may
    branch on shapes and call collectives.
    """

    def __init__(
        self,
        towers: Towers,
        task: RetrievalTask,
        averaging: float,
        penalty: float,
        id_dropout: float,
        targets: int,
    ) -> None:
        super().__init__()
        self.penalty = penalty
        """Weight of the L2 of looked-up embeddings; not part of the loss that is shown."""
        self.towers = towers
        self.task = task
        self.id_dropout = id_dropout
        self.targets = targets
        """Next items that a position of a sequence predicts."""
        self.averaging = averaging
        self.averaged = copy.deepcopy(towers).requires_grad_(False) if averaging else None
        """Exponential moving average of the towers, where `averaging` (its decay) is not 0."""

    @property
    def encoding(self) -> Towers:
        """The towers that queries and candidates are encoded with outside training."""
        return self.towers if self.averaged is None else self.averaged

    def forward(self, pooled: KeyedTensor, batch: Any) -> tuple[Tensor, Outputs]:
        batch = self.task.planned(batch)  # collective, unless it is planned already
        bags_U = batch.plan.encoded_U
        dense = {
            key: each.index_select(0, bags_U) if key in self.towers.inputs.candidate_dense else each
            for key, each in batch.dense.items()
        }
        parts, inputs = self.towers.split(pooled, batch.features, dense), self.towers.inputs
        sequences = batch.sequences
        if self.training and self.targets > 1:
            sequences = sequences.with_targets(self.targets)
        query_BO = self.towers.encode_queries(parts, batch.user_B.shape[0], sequences)
        kept_U = None
        if self.training and self.id_dropout:
            kept_U = kept_ids(batch, self.id_dropout).index_select(0, bags_U)
        candidate_UO = self.towers.encode_candidates(parts, bags_U, kept_U)
        value, outputs = self.task(query_BO, candidate_UO, batch)
        if self.penalty:
            looked_up = {key: parts[key] for key in inputs.keys if key not in inputs.of_events}
            value = value + self.penalty * mean_square(looked_up, batch)
        return value, outputs


def kept_ids(batch: Any, dropout: float) -> Tensor:
    """Which rows' candidates keep their id in this step, bool [S]: by item and step alone, so that
    they are the same ones on any number of ranks."""
    step = batch.position["epoch"] * 0x9E3779B1 + batch.step
    mixed_S = (batch.item_S + (step << 20)) * -0x61C8864680B583EB
    mixed_S = (mixed_S ^ (mixed_S >> 29)) * -0x40A7B892E31B1A47
    return ((mixed_S >> 33) & 0xFFFFFF).float() >= dropout * (1 << 24)


def mean_square(parts: dict[str, Tensor], batch: Any) -> Tensor:
    """Half the squared length of all looked-up embeddings, a row of the global batch; 0-d.

    Those of a row count by its weight, those of a drawn candidate once; items of sequences as the
    candidates that they are.
    This rank's share times the number of ranks, as the loss is. No collective.
    """
    square_S = torch.stack([part.square().sum(dim=1) for part in parts.values()]).sum(0)
    extra = square_S.shape[0] - batch.weight_B.shape[0]
    total = (square_S * F.pad(batch.weight_B, (0, extra), value=1.0)).sum()
    return 0.5 * total * (dist.get_world_size() / batch.global_weight)


class TwoTower(nn.Module):
    """The whole model.

    `forward` is what the training pipeline runs. `encode_queries` and `encode_candidates` are for
    evaluation and export; both look up sharded tables, so they are collective: every rank calls
    them together, with the same number of rows.
    """

    def __init__(
        self,
        model: ModelConfig,
        inputs: Inputs,
        task: RetrievalTask,
        averaging: float = 0.0,
        penalty: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.embeddings = build_embedding_bags(inputs.tables)
        self.head = Head(
            Towers(model, inputs), task, averaging, penalty, model.id_dropout, model.targets
        )
        self.unknown_ids: dict[str, Tensor | int] = {}
        """Ids met by `encode_*` so far that no table row stands for, by feature."""

    def forward(self, batch: Any) -> tuple[Tensor, Outputs]:
        """One rank's batch -> (its share of the loss, statistics). Collective."""
        pooled = self.embeddings(batch.features)
        return self.head(pooled, batch)

    @torch.no_grad()
    def average_towers(self) -> None:
        """Move the towers' average towards them; after each step. No collective."""
        if self.head.averaged is None:
            return
        pairs = zip(self.head.averaged.parameters(), self.head.towers.parameters(), strict=True)
        for average, parameter in pairs:
            average.lerp_(parameter, 1 - self.head.averaging)

    def use_averaged_towers(self) -> None:
        """Put the average in the towers' place: training does not go on from here."""
        if self.head.averaged is not None:
            self.head.towers.load_state_dict(self.head.averaged.state_dict())

    def use_columns(self, width: int | None) -> None:
        """Have both towers give their first columns alone, of length 1 again where they are
        normalised; None: all. Training needs all."""
        for towers in (self.head.towers, self.head.averaged):
            if towers is not None:
                towers.query.columns = width
                towers.candidate.columns = width

    @torch.no_grad()
    def encode_queries(self, features: Features) -> Tensor:
        """n bags with the query keys filled -> [n, O]; zeros: nothing is known. Collective."""
        parts, packed = self._parts(features), features.sequences
        if packed is None:
            query_nO = self.head.encoding.encode_queries(parts, features.bags.stride())
            return self._blank(query_nO, self.inputs.query_keys, parts, features)
        rows = len(packed.query_B)
        query_nO = self.head.encoding.encode_queries(parts, rows, packed)
        keys = [key for key in self.inputs.query_keys if key != "history"]
        of_rows = {key: parts[key][:rows] for key in keys}
        seen = has_known_item(parts["history"], packed)
        return self._blank(query_nO, keys, of_rows, features, [seen])

    @torch.no_grad()
    def encode_events(self, features: Features) -> Tensor:
        """n bags with the keys of sequences' items filled -> [n, D], as the query tower reads
        them; zeros: nothing is known. Collective."""
        return self._parts(features)["history"]

    @torch.no_grad()
    def encode_candidates(self, features: Features) -> Tensor:
        """n bags with the candidate keys filled -> [n, O]; zeros: nothing is known. Collective."""
        parts = self._parts(features)
        item_nO = self.head.encoding.encode_candidates(parts)
        return self._blank(item_nO, self.inputs.candidate_keys, parts, features)

    def _parts(self, features: Features) -> dict[str, Tensor]:
        """Collective."""
        bags = self._complete(features.bags)
        return self.head.encoding.split(self.embeddings(bags), bags, features.dense)

    def _blank(
        self,
        output_nO: Tensor,
        keys: Sequence[str],
        parts: Mapping[str, Tensor],
        features: Features,
        seen: Sequence[Tensor] = (),
    ) -> Tensor:
        told = {key: each for key, each in features.dense.items() if key in self.inputs.dense}
        evidence = [*self.head.encoding.dense.evidence(told), *seen]
        return zeros_where_nothing_is_known(output_nO, [parts[key] for key in keys], evidence)

    def _complete(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The same bags under all of the model's keys, in its order; those not given are empty.

        Ids that a table does not know go to its row for them and are counted in `unknown_ids`.
        """
        given = features.to_dict()
        stride = features.stride()
        device = features.values().device
        empty_lengths = torch.zeros(stride, dtype=features.lengths().dtype, device=device)
        parts = [given.get(key) for key in self.inputs.keys]
        values = [self._known(k, given[k].values()) for k in self.inputs.keys if k in given]
        return KeyedJaggedTensor(
            keys=list(self.inputs.keys),
            values=torch.cat(values),
            lengths=torch.cat([empty_lengths if p is None else p.lengths() for p in parts]),
            stride=stride,
        )

    def _known(self, key: str, ids: Tensor) -> Tensor:
        unknown = ids >= self.inputs.known_rows(key)
        self.unknown_ids[key] = self.unknown_ids.get(key, 0) + unknown.sum()
        return ids.masked_fill(unknown, self.inputs.unknown_row(key))
