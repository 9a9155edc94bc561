"""`tandem export RUN OUT`: embeddings as Parquet, tower programs, and a FAISS index.

    OUT/items/part-R.parquet   item, raw_id, title, embedding    rank R's range of the catalog
    OUT/users/part-R.parquet   user, raw_id, embedding           histories up to the present
    OUT/{item,query}_tower.pt2, OUT/{item,query}_encoder.pt2     see programs.py
    OUT/items.faiss            with --index
    OUT/export.json            what made it, and how programs and index are called

docs/serving.md tells how they are used.

OUT appears whole or not at all: it is written as OUT.partial and renamed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.agreement import together
from trainer.data.schema import Dataset
from trainer.data.storage import open_parquet
from trainer.mistake import Mistake
from trainer.ranks import Ranks
from trainer.restore import TrainedRun, load_run
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.encode import ROWS_AT_ONCE, Encoder, blocks_of_range, rank_range
from trainer.retrieval.index import (
    build_index,
    index_recall,
    read_embeddings,
    write_index,
)
from trainer.retrieval.item_lists import ItemLists
from trainer.retrieval.known import known_users
from trainer.retrieval.programs import (
    export_encoders,
    export_towers,
    gather_tables,
    program_facts,
    save_program,
    table_bytes,
)
from trainer.retrieval.workers import on_workers
from trainer.retrieval.writing import written
from trainer.run_files import write_json
from trainer.screen import say

QUERIES_OF_RECALL = 1000


def export(arguments: ExportArguments) -> dict[str, Any]:
    """Write OUT and print what is in it; returns the contents of export.json."""
    facts: dict[str, Any] = on_workers(export_on_rank, arguments, arguments.workers)
    say(
        f"exported {facts['items']:,} items and {facts['users']:,} users, "
        f"{facts['width']} wide, to {arguments.out}"
    )
    say(f"programs: {', '.join(facts['programs'])}")
    if "index" in facts:
        found = facts["index"]
        say(
            f"index {found['kind']}: recall@{found['k']} against exact search "
            f"{found['recall']:.4f} over {found['queries']:,} users"
        )
    return facts


def export_on_rank(arguments: ExportArguments, ranks: Ranks) -> dict[str, Any]:
    """Collective; the facts are whole on rank 0 alone."""
    out = Path(arguments.out)
    partial = out.with_name(out.name + ".partial")
    together(lambda: _make_folders(out, partial) if ranks.is_first else None)  # collective
    trained = load_run(arguments.run, ranks, arguments.data)  # collective
    encoder = Encoder.of_run(trained, ranks)
    width = write_items(encoder, trained.dataset, partial / "items")  # collective
    if arguments.users:
        write_users(encoder, trained.dataset, partial / "users")  # collective
    programs = write_programs(trained, ranks, partial, arguments.encoder_limit)  # collective
    dist.barrier()  # collective: all parts are written
    inputs = trained.model.inputs
    facts: dict[str, Any] = {
        "run": arguments.run,
        "step": trained.step,
        "dataset_digest": trained.dataset.digest,
        "similarity": trained.config.model.similarity,
        "items": trained.dataset.num_items,
        "users": trained.dataset.num_users if arguments.users else 0,
        "width": width,
        "query_keys": list(inputs.query_keys),
        "candidate_keys": list(inputs.candidate_keys),
        "mean_keys": sorted(inputs.mean_keys),
        "programs": {name: program_facts(name, inputs, width) for name in programs},
    }
    if ranks.is_first:
        if arguments.index is not None:
            facts["index"] = _write_index(arguments, partial, facts)
        write_json(partial / "export.json", facts)
        partial.rename(out)
    dist.barrier()  # collective: OUT is in place when any rank returns
    return facts


def write_items(encoder: Encoder, dataset: Dataset, folder: Path) -> int:
    """This rank's part of the item embeddings; returns their width. Collective."""
    width = 0
    with _Part(folder, encoder.ranks, dataset.file("items.parquet"), "item") as part:
        for row_n, block_nD in encoder.item_blocks():  # collective
            width = block_nD.size(1)
            part.write(row_n, block_nD)
    return width


def write_users(encoder: Encoder, dataset: Dataset, folder: Path) -> None:
    """This rank's part of the user embeddings. Collective."""
    first, stop = rank_range(dataset.num_users, encoder.ranks)
    known = known_users(dataset, first, stop, with_seen=False, block_size=ROWS_AT_ONCE)
    longest = min(ROWS_AT_ONCE, -(-dataset.num_users // encoder.ranks.world_size))
    with _Part(folder, encoder.ranks, dataset.file("users.parquet"), "user") as part:
        for row_n in blocks_of_range(dataset.num_users, encoder.ranks):
            user_q = torch.full((longest,), -1)
            user_q[: len(row_n)] = torch.from_numpy(row_n)
            history = disliked = ItemLists.from_lists([[]])
            if len(row_n) and encoder.uses_history:
                block = next(known)
                history, disliked = block.history, block.disliked
            query_qD = encoder.queries(  # collective
                user_q, history.padded(longest), disliked.padded(longest)
            )
            part.write(row_n, query_qD[: len(row_n)])


def write_programs(trained: TrainedRun, ranks: Ranks, folder: Path, limit: int) -> list[str]:
    """Rank 0 writes the tower programs, with tables too where they fit. Collective."""
    programs = export_towers(trained.model) if ranks.is_first else {}
    inputs = trained.model.inputs
    if table_bytes(inputs) <= limit and inputs.neighbours is None:
        tables = gather_tables(trained.model, ranks)  # collective
        programs |= export_encoders(trained.model, tables) if ranks.is_first else {}
    for name, program in programs.items():
        save_program(program, folder / f"{name}.pt2")
    return sorted(programs)


class _Part:
    """One rank's Parquet file of embeddings, beside columns of the dataset's table."""

    def __init__(self, folder: Path, ranks: Ranks, table_path: str, key: str) -> None:
        self.key = key
        self.path = folder / f"part-{ranks.rank:05d}.parquet"
        self.source = open_parquet(table_path)
        self.columns = [c for c in ("raw_id", "title") if c in self.source.schema_arrow.names]
        metadata = self.source.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.starts = list(accumulate(sizes, initial=0))
        self.read_group = lru_cache(maxsize=2)(self._read_group)
        self.writer: pq.ParquetWriter | None = None
        self.closing = ExitStack()
        self.closing.callback(self.source.close)

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.__exit__(*error)

    def write(self, row_n: np.ndarray, embedding_nD: Tensor) -> None:
        """Rows, consecutive, with their embeddings."""
        if not len(row_n) and self.writer is not None:
            return
        named = self._named(row_n)
        flat = pa.array(embedding_nD.float().cpu().numpy().reshape(-1))
        embedding = pa.FixedSizeListArray.from_arrays(flat, embedding_nD.size(1))
        columns = {self.key: pa.array(row_n)} | {c: named.column(c) for c in self.columns}
        table = pa.table({**columns, "embedding": embedding})
        if self.writer is None:
            # Floats of embeddings do not compress: no time is lost on trying.
            stream = self.closing.enter_context(written(self.path))
            self.writer = self.closing.enter_context(
                pq.ParquetWriter(stream, table.schema, compression="NONE", use_dictionary=False)
            )
        self.writer.write_table(table)

    def _named(self, row_n: np.ndarray) -> pa.Table:
        """Raw ids and titles of consecutive rows."""
        if not len(row_n):
            return self.source.schema_arrow.empty_table().select(self.columns)
        first, stop = int(row_n[0]), int(row_n[-1]) + 1
        return pa.concat_tables(
            self.read_group(group).slice(
                max(first - self.starts[group], 0), stop - max(first, self.starts[group])
            )
            for group in self._groups(first, stop)
        )

    def _groups(self, first: int, stop: int) -> Iterator[int]:
        for group in range(len(self.starts) - 1):
            if self.starts[group] < stop and self.starts[group + 1] > first:
                yield group

    def _read_group(self, group: int) -> pa.Table:
        return self.source.read_row_group(group, columns=self.columns)


def _write_index(arguments: ExportArguments, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Rank 0: build, compare with exact search, write."""
    assert arguments.index is not None
    index = build_index(arguments.index, folder / "items", facts["items"], facts["width"])
    block = next(read_embeddings(folder / "users"))
    rows = np.random.default_rng(0).permutation(len(block))[:QUERIES_OF_RECALL]
    k = min(arguments.index_k, facts["items"])
    recall = index_recall(index, folder / "items", torch.from_numpy(block[rows]), k)
    write_index(index, folder / "items.faiss")
    return {
        "kind": arguments.index,
        "file": "items.faiss",
        "metric": "inner product",
        "position": "item row, the column `item` of items/",
        "none_found": -1,
        "seen_items_removed": False,
        "k": k,
        "recall": recall,
        "queries": len(rows),
    }


def _make_folders(out: Path, partial: Path) -> None:
    if out.exists():
        raise Mistake(f"{out} exists already; choose another folder, or remove it")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("items", "users"):
        (partial / name).mkdir(parents=True)
