"""The files of a bundle that queries are encoded with: programs, and the tables of the query tower.

Tensor shapes: R rows of a table, D its columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.bundle.flat_arrays import GrowingArray
from trainer.bundle.manifest import TableFile
from trainer.data.feature_bags import rows_of
from trainer.distributed.ranks import Ranks
from trainer.files.writing import written
from trainer.model.inputs import Inputs
from trainer.model.trained import TrainedRun
from trainer.retrieval.encode import Encoder
from trainer.retrieval.programs import export_encoders, export_towers, save_program
from trainer.run.checkpoint_facts import DTYPE_NAMES
from trainer.run.shard_files import safetensors_header


def table_bytes(inputs: Inputs) -> int:
    """Bytes of all tables in float32."""
    return sum(4 * table.num_rows * table.dim for table in inputs.tables)


def write_programs(
    trained: TrainedRun,
    encoder: Encoder,
    folder: Path,
    limit: int,
    place: str = "",
    scale: float = 1.0,
) -> tuple[list[str], dict[str, TableFile]]:
    """Rank 0 writes the tower programs, those with tables inside where these fit, and the tables
    that the query tower reads, in files of their own. Collective.

    Args:
        place: what stands before the files' names.
        scale: of the programs' vectors.

    Returns:
        Names of the programs, and the tables' files by query key.
    """
    inputs, ranks = trained.model.inputs, encoder.ranks
    row_of = encoder.store.row_of
    kept: dict[str, Tensor] = {}
    if inputs.reads_events:
        inputs = inputs.with_event_table(encoder.num_items)
        events = encoder.event_table()  # collective
        if events is not None:
            save_table(folder / _table_file(place, "event"), "event", events)
            kept["event"] = events
    with_encoders = table_bytes(inputs) <= limit
    of_query = {
        key: table.name
        for key in inputs.query_keys
        for table in inputs.tables
        if key in table.features
    }
    for name, sharded in trained.model.embeddings.state_dict().items():
        table = name.removeprefix("embedding_bags.").removesuffix(".weight")
        if with_encoders or table in of_query.values():
            whole = gathered(sharded, ranks)  # collective
            if whole is not None and table in of_query.values():
                save_table(folder / _table_file(place, table), table, whole)
            if whole is not None and with_encoders:
                kept[table] = whole
    programs = export_towers(trained.model, scale) if ranks.is_first else {}
    if with_encoders and ranks.is_first:
        programs |= export_encoders(trained.model, kept, inputs, row_of, scale)
    for name, program in programs.items():
        save_program(program, folder / f"{place}{name}.pt2")
    files = {}
    for key, name in of_query.items():
        rows, known, unknown = None, inputs.known_rows(key), inputs.unknown_row(key)
        if inputs.shares_rows(key, row_of):
            rows = f"{place}tables/rows_of_{rows_of(key)}s.npy"
            if ranks.is_first and not (folder / rows).exists():
                with GrowingArray(folder / rows, np.int32) as array:
                    array.append(row_of[rows_of(key)])
        files[key] = TableFile(_table_file(place, name), name, known, unknown, rows)
    return sorted(programs), files


def _table_file(place: str, table: str) -> str:
    return f"{place}tables/{table}.safetensors"


def save_table(path: Path, name: str, table_RD: Tensor) -> None:
    """One tensor in the form of safetensors, which is mapped where it is read."""
    kind, values = DTYPE_NAMES[table_RD.dtype], table_RD.contiguous().numpy()
    facts = {"dtype": kind, "shape": [*values.shape], "data_offsets": [0, values.nbytes]}
    with written(path) as stream:
        stream.write(safetensors_header({name: facts}))
        stream.write(values.data.cast("B"))


def gathered(sharded: Any, ranks: Ranks) -> Tensor | None:
    """A whole table on rank 0, None elsewhere. Collective.

    By way of the hosts: a whole table need not fit a GPU, and a group of gloo and NCCL takes what
    a sharded tensor gathers to be on the host.
    """
    whole = None
    if ranks.is_first:
        whole = torch.empty(sharded.size(), dtype=sharded.dtype)
    sharded.gather(dst=0, out=whole)  # collective
    return whole
