"""The towers as `torch.export` programs, for serving without this code.

Two kinds, both for any number of rows n at least 1:

    {item,query}_tower.pt2     pooled embeddings [n, F, D] -> [n, O]; always written. The server
                               looks the embeddings up itself, so size does not matter; rows of
                               narrower tables end in zeros.
    {item,query}_encoder.pt2   {key: ids [n, L of the key], -1 where there is none} -> [n, O];
                               written where the tables together fit a limit, since it holds them.

The sequence tower's list is the key "history": ids oldest first in the encoder, embeddings of
places in the tower.

A tower that reads numbers or vectors takes a second argument: {key: numbers [n, 1], NaN where
missing, or vectors [n, W], zeros where missing}; of a sequence whose items carry marks,
"history.kind" and "history.gap" [n, L] are in it (trainer/data/events/marks.py).

An encoder sends ids that the model does not know to its row for them, as the model does. The output
is zeros for a row of which nothing is known: its features are zeros. How programs are called is
told to their users in docs/serving.md.

Tensor shapes: n rows, F features of the tower, D columns of a table, O columns of the output.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trainer.data.feature_bags import rows_of
from trainer.files.writing import written
from trainer.model.dense import DenseInputs
from trainer.model.inputs import Inputs
from trainer.model.sequences.served import SequenceEncoding, SequenceTowerProgram
from trainer.model.sequences.tower import SequenceTower
from trainer.model.towers import zeros_where_nothing_is_known
from trainer.model.two_tower import TwoTower


class Encoding(nn.Module):
    """A tower and its dense inputs."""

    def __init__(self, tower: nn.Module, dense: DenseInputs, keys: Sequence[str]) -> None:
        """dense: of both sides. keys: the dense ones that this tower reads."""
        super().__init__()
        self.tower = copy.deepcopy(tower).cpu().eval()
        self.keys = tuple(keys)
        self.dense = dense.only(keys)

    def forward(self, features_nD: Sequence[Tensor], dense: dict[str, Tensor]) -> Tensor:
        """[n, O]; zeros for rows of which nothing is known."""
        in_order = {key: dense[key] for key in self.keys}
        read = self.dense.embed(in_order)
        output_nO = self.tower([*read.values(), *features_nD])
        evidence = self.dense.evidence(in_order)
        return zeros_where_nothing_is_known(output_nO, features_nD, evidence)


class TowerProgram(nn.Module):
    """A tower over pooled embeddings, features in the order of its keys, and dense ones."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self, pooled_nFD: Tensor, dense: dict[str, Tensor] | None = None) -> Tensor:
        return self.encoding(pooled_nFD.unbind(1), dense or {})  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """A program whose vectors are multiplied: those of a second model beside the first."""

    def __init__(self, program: nn.Module, scale: float) -> None:
        super().__init__()
        self.program, self.scale = program, scale

    def forward(self, features: Any, dense: dict[str, Tensor] | None = None) -> Tensor:
        return self.program(features, dense) * self.scale  # type: ignore[no-any-return]


class EncoderProgram(nn.Module):
    """Tables and a tower: ids of each key, padded with -1, and dense features to embeddings."""

    def __init__(
        self,
        encoding: Encoding | SequenceEncoding,
        keys: Sequence[str],
        tables: dict[str, Tensor],
        inputs: Inputs,
        row_of: Mapping[str, np.ndarray],
    ) -> None:
        """row_of: by "user" and "item", the row of each id in its tables, where that is another."""
        super().__init__()
        self.encoding = encoding
        self.keys = tuple(keys)
        self.mean_keys, self.dim = inputs.mean_keys, inputs.tables[0].dim
        self.unknown = {key: (inputs.known_rows(key), inputs.unknown_row(key)) for key in keys}
        self.table_of = {key: table.name for table in inputs.tables for key in table.features}
        for name in {self.table_of[key] for key in keys}:
            self.register_buffer(f"table_{name}", tables[name])
        self.side_of = {key: rows_of(key) for key in keys if inputs.shares_rows(key, row_of)}
        for side in set(self.side_of.values()):
            self.register_buffer(f"rows_{side}", torch.from_numpy(row_of[side].astype(np.int32)))

    def forward(self, ids: dict[str, Tensor], dense: dict[str, Tensor] | None = None) -> Tensor:
        if isinstance(self.encoding, SequenceEncoding):
            parts = {key: self._pooled(key, ids[key]) for key in self.encoding.looked_up}
            id_nL = ids["history"]
            rows_nLD = self._rows("history", id_nL)
            return self.encoding(parts, rows_nLD, id_nL >= 0, dense or {})  # type: ignore[no-any-return]
        features_nD = [self._pooled(key, ids[key]) for key in self.keys]
        return self.encoding(features_nD, dense or {})  # type: ignore[no-any-return]

    def _rows(self, key: str, id_nL: Tensor) -> Tensor:
        """[n, L, D] of each id; any where there is none."""
        table_RD = self.get_buffer(f"table_{self.table_of[key]}")
        known_rows, unknown_row = self.unknown[key]
        row_nL = id_nL.clamp(min=0)
        if key in self.side_of:
            row_of = self.get_buffer(f"rows_{self.side_of[key]}")
            known_nL = row_of[row_nL.clamp(max=len(row_of) - 1)].long()
            row_nL = torch.where(row_nL < len(row_of), known_nL, unknown_row)
        row_nL = row_nL.masked_fill(row_nL >= known_rows, unknown_row)
        return table_RD[row_nL].float()

    def _pooled(self, key: str, id_nL: Tensor) -> Tensor:
        """Sum of the ids' rows, or their mean where the model takes it; none give zeros."""
        real_nL1 = (id_nL >= 0).unsqueeze(2).float()
        pooled_nD = (self._rows(key, id_nL) * real_nL1).sum(1)
        if pooled_nD.shape[1] < self.dim:
            pooled_nD = F.pad(pooled_nD, (0, self.dim - pooled_nD.shape[1]))
        return pooled_nD / real_nL1.sum(1).clamp(min=1) if key in self.mean_keys else pooled_nD


@dataclass(frozen=True)
class _Side:
    """What a tower reads."""

    name: str
    encoding: Encoding | SequenceEncoding
    keys: tuple[str, ...]
    scale: float
    """Of what it gives."""

    def exported(
        self,
        program: nn.Module,
        example: Any,
        shapes: Any,
        rows: Dim,
        inputs: Inputs,
        places: int | Dim,
    ) -> ExportedProgram:
        """The program of the tower's bags, and of its dense features and marks where it reads such.

        places: of a sequence's list.
        """
        if self.scale != 1:
            program = Scaled(program, self.scale)
        dense = {
            key: torch.zeros((2, max(inputs.dense[key].width, 1))) for key in self.encoding.keys
        }
        dense_shapes: dict[str, dict[int, Any]] = {key: {0: rows} for key in dense}
        if isinstance(self.encoding, SequenceEncoding):
            for key in self.encoding.mark_keys:
                length = places if isinstance(places, int) else 3
                dense[key] = torch.zeros((2, length), dtype=torch.int64)
                dense_shapes[key] = {0: rows} | ({} if isinstance(places, int) else {1: places})
        if not dense:
            return torch.export.export(program, (example,), dynamic_shapes=(shapes,))
        return torch.export.export(program, (example, dense), dynamic_shapes=(shapes, dense_shapes))


def _sides(model: TwoTower, scale: float) -> tuple[_Side, _Side]:
    towers, inputs = model.head.towers, model.inputs
    candidate = Encoding(towers.candidate, towers.dense, inputs.candidate_dense)
    query: Encoding | SequenceEncoding
    if isinstance(towers.query, SequenceTower):
        query = SequenceEncoding(towers.query, towers.dense, inputs)
    else:
        query = Encoding(towers.query, towers.dense, inputs.query_dense)
    return (
        _Side("item", candidate, inputs.candidate_keys, scale),
        _Side("query", query, inputs.query_keys, scale),
    )


def export_towers(model: TwoTower, scale: float = 1.0) -> dict[str, ExportedProgram]:
    """`item_tower` and `query_tower`. No collective.

    scale: of their vectors.
    """
    inputs, programs, rows = model.inputs, {}, Dim("rows")
    for side in _sides(model, scale):
        example = torch.zeros((2, len(program_features(side.keys, inputs)), inputs.tables[0].dim))
        program: nn.Module
        if isinstance(side.encoding, SequenceEncoding):
            program = SequenceTowerProgram(side.encoding)
        else:
            program = TowerProgram(side.encoding)
        programs[f"{side.name}_tower"] = side.exported(
            program, example, {0: rows}, rows, inputs, inputs.sequence_length
        )
    return programs


def export_encoders(
    model: TwoTower,
    tables: dict[str, Tensor],
    inputs: Inputs,
    row_of: Mapping[str, np.ndarray],
    scale: float = 1.0,
) -> dict[str, ExportedProgram]:
    """`item_encoder` and `query_encoder`, with whole tables inside. No collective.

    inputs: which table each key looks up. row_of: by "user" and "item", the row of each id in its
    tables, where it is not the id. scale: of their vectors.
    """
    programs: dict[str, ExportedProgram] = {}
    rows = Dim("rows")
    for side in _sides(model, scale):
        several = {key for key in side.keys if key in inputs.several_keys}
        example = {key: torch.zeros((2, 3 if key in several else 1)).long() for key in side.keys}
        lengths = {key: Dim(f"length_{place}") for place, key in enumerate(side.keys)}
        shapes: dict[str, Any] = {
            key: {0: rows, 1: lengths[key]} if key in several else {0: rows} for key in side.keys
        }
        module = EncoderProgram(side.encoding, side.keys, tables, inputs, row_of)
        places = lengths.get("history", 0)
        programs[f"{side.name}_encoder"] = side.exported(
            module, example, shapes, rows, inputs, places
        )
    return programs


def program_features(keys: Sequence[str], inputs: Inputs) -> list[str]:
    """What a tower program reads in order: keys, of a sequence each place, the most recent last."""
    if not inputs.sequence_length or "history" not in keys:
        return list(keys)
    places = [f"history@{place}" for place in reversed(range(inputs.sequence_length))]
    return [*(key for key in keys if key != "history"), *places]


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program for `torch.export.load`. Memory: its bytes once more."""
    packed = io.BytesIO()
    torch.export.save(program, packed)  # its own writer ends the process where a disk is full
    with written(path) as stream:
        stream.write(packed.getbuffer())


def program_facts(name: str, inputs: Inputs, width: int) -> dict[str, Any]:
    """How a program is called, for bundle.json."""
    side, _, kind = name.partition("_")
    keys = inputs.candidate_keys if side == "item" else inputs.query_keys
    dense_keys = inputs.candidate_dense if side == "item" else inputs.query_dense
    facts: dict[str, Any] = {"output": f"float32 [n, {width}]"}
    dense = {key: f"float32 [n, {max(inputs.dense[key].width, 1)}]" for key in dense_keys}
    if side == "query" and inputs.marks is not None:
        places_of_list = inputs.sequence_length if kind == "tower" else "L"
        dense |= dict.fromkeys(inputs.marks.keys, f"int64 [n, {places_of_list}]")
    if dense:
        facts["dense"] = dense
    if kind == "tower":
        places = program_features(keys, inputs)
        pooled = f"float32 [n, {len(places)}, {inputs.tables[0].dim}]"
        return {"input": pooled, "features": places, **facts}
    lists = {key: f"int64 [n, {'L' if key in inputs.several_keys else 1}]" for key in keys}
    return {"input": lists, "padding": -1, **facts}
