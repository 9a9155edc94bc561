"""The towers as `torch.export` programs, for serving without this code.

Two kinds, both for any number of rows n at least 1:

    {item,query}_tower.pt2     pooled embeddings [n, F, D] -> [n, O]; always written. The server
                               looks the embeddings up itself, so size does not matter.
    {item,query}_encoder.pt2   {key: ids [n, L of the key], -1 where there is none} -> [n, O];
                               written where the tables together fit a limit, since it holds them,
                               and no tower reads the graph, whose bags are weighted.

An encoder sends ids that the model does not know to its row for them, as the model does. The output
is zeros for a row of which nothing is known: its features are zeros. How programs are called is
told to their users in docs/serving.md.

Tensor shapes: n rows, F features of the tower, D columns of a table, O columns of the output.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trainer.distributed.ranks import Ranks
from trainer.files.writing import written
from trainer.model.inputs import Inputs
from trainer.model.towers import zeros_where_nothing_is_known
from trainer.model.two_tower import TwoTower


class TowerProgram(nn.Module):
    """A tower over pooled embeddings, features in the order of its keys."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower).cpu().eval()

    def forward(self, pooled_nFD: Tensor) -> Tensor:
        features_nD = pooled_nFD.unbind(1)
        return zeros_where_nothing_is_known(self.tower(features_nD), features_nD)


class EncoderProgram(nn.Module):
    """Tables and a tower: ids of each key, padded with -1, to embeddings."""

    def __init__(
        self, tower: nn.Module, keys: Sequence[str], tables: dict[str, Tensor], inputs: Inputs
    ) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower).cpu().eval()
        self.keys = tuple(keys)
        self.mean_keys = inputs.mean_keys
        self.unknown = {key: (inputs.known_rows(key), inputs.unknown_row(key)) for key in keys}
        self.table_of = {key: table.name for table in inputs.tables for key in table.features}
        for name in {self.table_of[key] for key in keys}:
            self.register_buffer(f"table_{name}", tables[name])

    def forward(self, ids: dict[str, Tensor]) -> Tensor:
        features_nD = [self._pooled(key, ids[key]) for key in self.keys]
        return zeros_where_nothing_is_known(self.tower(features_nD), features_nD)

    def _pooled(self, key: str, id_nL: Tensor) -> Tensor:
        """Sum of the ids' rows, or their mean where the model takes it; none give zeros."""
        table_RD = self.get_buffer(f"table_{self.table_of[key]}")
        real_nL1 = (id_nL >= 0).unsqueeze(2).float()
        known_rows, unknown_row = self.unknown[key]
        row_nL = id_nL.clamp(min=0).masked_fill(id_nL >= known_rows, unknown_row)
        pooled_nD = (table_RD[row_nL].float() * real_nL1).sum(1)
        return pooled_nD / real_nL1.sum(1).clamp(min=1) if key in self.mean_keys else pooled_nD


def export_towers(model: TwoTower) -> dict[str, ExportedProgram]:
    """`item_tower` and `query_tower`. No collective."""
    towers, inputs, programs = model.head.towers, model.inputs, {}
    for side, tower, keys in (
        ("item", towers.candidate, inputs.candidate_keys),
        ("query", towers.query, inputs.query_keys),
    ):
        example = torch.zeros((2, len(keys), inputs.tables[0].dim))
        programs[f"{side}_tower"] = torch.export.export(
            TowerProgram(tower), (example,), dynamic_shapes=({0: Dim("rows")},)
        )
    return programs


def export_encoders(model: TwoTower, tables: dict[str, Tensor]) -> dict[str, ExportedProgram]:
    """`item_encoder` and `query_encoder`, with whole tables inside. No collective.

    None for the graph tower: its bags are weighted by degrees that the programs do not hold.
    """
    towers, inputs = model.head.towers, model.inputs
    programs: dict[str, ExportedProgram] = {}
    if inputs.neighbours is not None:
        return programs
    rows = Dim("rows")
    for side, tower, keys in (
        ("item", towers.candidate, inputs.candidate_keys),
        ("query", towers.query, inputs.query_keys),
    ):
        several = {key for key in keys if key in inputs.mean_keys}
        example = {key: torch.zeros((2, 3 if key in several else 1)).long() for key in keys}
        shapes: dict[str, Any] = {
            key: {0: rows, 1: Dim(f"length_{place}")} if key in several else {0: rows}
            for place, key in enumerate(keys)
        }
        module = EncoderProgram(tower, keys, tables, inputs)
        programs[f"{side}_encoder"] = torch.export.export(
            module, (example,), dynamic_shapes=(shapes,)
        )
    return programs


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program for `torch.export.load`. Memory: its bytes once more."""
    packed = io.BytesIO()
    torch.export.save(program, packed)  # its own writer ends the process where a disk is full
    with written(path) as stream:
        stream.write(packed.getbuffer())


def program_facts(name: str, inputs: Inputs, width: int) -> dict[str, Any]:
    """How a program is called, for export.json."""
    side, _, kind = name.partition("_")
    keys = inputs.candidate_keys if side == "item" else inputs.query_keys
    output = f"float32 [n, {width}]"
    if kind == "tower":
        pooled = f"float32 [n, {len(keys)}, {inputs.tables[0].dim}]"
        return {"input": pooled, "features": list(keys), "output": output}
    lists = {key: f"int64 [n, {'L' if key in inputs.mean_keys else 1}]" for key in keys}
    return {"input": lists, "padding": -1, "output": output}


def table_bytes(inputs: Inputs) -> int:
    """Bytes of all tables in float32."""
    return sum(4 * table.num_rows * table.dim for table in inputs.tables)


def gather_tables(model: TwoTower, ranks: Ranks) -> dict[str, Tensor]:
    """Whole tables by name on rank 0, nothing elsewhere. Collective: a gather a table.

    By way of the hosts: a whole table need not fit a GPU, and a group of gloo and NCCL takes what
    a sharded tensor gathers to be on the host.
    """
    tables = {}
    for name, sharded in model.embeddings.state_dict().items():
        whole = None
        if ranks.is_first:
            whole = torch.empty(sharded.size(), dtype=sharded.dtype)
        sharded.gather(dst=0, out=whole)  # collective
        if whole is not None:
            tables[name.removeprefix("embedding_bags.").removesuffix(".weight")] = whole
    return tables
