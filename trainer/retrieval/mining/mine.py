"""`tandem mine RUN OUT`: what RUN ranks high for each user and the user has not met in training.

Held-out items are not left out: whoever trains on what is mined must not learn what is held out.

Shapes: Q users of a block, q of them the rank's own, K items mined.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.distributed.agreement import gather_objects, together
from trainer.files.filesystems import is_uri
from trainer.files.writing import written
from trainer.launch.here import is_first_process
from trainer.launch.launcher import Launcher, Worker
from trainer.launch.processes import on_this_machine
from trainer.loader.mined import mined_schema
from trainer.retrieval.arguments import MineArguments
from trainer.retrieval.encode import is_known
from trainer.retrieval.known import KnownUsers, known_users
from trainer.retrieval.opened import OpenedRun
from trainer.retrieval.search.filter import Filter
from trainer.retrieval.search.keys import decode_keys
from trainer.retrieval.search.merge import merge_rankings, share_queries
from trainer.retrieval.search.topk import exact_topk

USERS_AT_ONCE = 4096


def mine(arguments: MineArguments, launcher: Launcher | None = None) -> int:
    """Mine, and say where the file lies; how many users it has.

    Raises:
        Mistake: where the run cannot be opened, or OUT cannot be made.
    """
    _check_out(arguments.out)
    launcher = launcher or on_this_machine(arguments.workers)
    users: int = launcher.run(mine_on_rank, arguments)
    if is_first_process():
        say(f"mined {arguments.k} items for each of {users:,} users: {arguments.out}")
    return users


def _check_out(out: str) -> None:
    if is_uri(out):
        raise Mistake(f"OUT {out}: name a local or shared file")
    if Path(out).exists() or Path(out).is_symlink():
        raise Mistake(f"OUT {out} is there already: name another file, or remove it")


def mine_on_rank(arguments: MineArguments, worker: Worker) -> int:
    """Collective; rank 0 writes."""
    ranks = worker.ranks
    opened = OpenedRun(arguments.run, ranks, arguments.data)  # collective
    dataset, splits = opened.trained.dataset, opened.trained.config.data.train_splits
    most = min(arguments.k + arguments.skip, dataset.num_items)
    how = Filter.best_for(ranks.device)
    out = Path(arguments.out)
    begun = out.with_name(out.name + ".partial")
    users = 0
    file = together(lambda: _Writer(begun, mined_schema(dataset)) if ranks.is_first else None)
    try:
        everybody = (dataset, 0, dataset.num_users, USERS_AT_ONCE, splits, opened.encoder.marks)
        for known in known_users(*everybody):
            row_q, key_qK = _best_of(opened, known, most, how)  # collective
            parts = gather_objects((row_q, key_qK[:, arguments.skip :]))  # collective
            users += sum(len(rows) for rows, _ in parts)
            together(partial(_write, file, parts))  # collective
            worker.hooks.on_phase("evaluating", known.first, dataset.num_users)
        together(lambda: file.finish(out) if file is not None else None)  # collective
    finally:
        if ranks.is_first:
            begun.unlink(missing_ok=True)
    return users


def _best_of(
    opened: OpenedRun, known: KnownUsers, most: int, how: Filter
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of this rank's users of whom anything is known, and their keys. Collective."""
    ranks, encoder = opened.ranks, opened.encoder
    number = len(known.history)
    each = -(-number // ranks.world_size)
    row_Q = torch.full((each * ranks.world_size,), -1)
    row_Q[:number] = torch.arange(known.first, known.first + number)
    own = slice(ranks.rank * each, (ranks.rank + 1) * each)
    lists = [part.padded(len(row_Q)) for part in (known.history, known.disliked)]
    history, disliked = (part.slice(own.start, own.stop) for part in lists)
    query_qD = encoder.queries(row_Q[own], history, disliked)  # collective
    query_QD = share_queries(query_qD)  # collective
    seen = known.seen.padded(len(row_Q)).to(ranks.device)
    key_qK = merge_rankings(exact_topk(opened.items, query_QD, seen, most, how))  # collective
    real_q = (row_Q[own] >= 0) & is_known(query_qD).cpu()
    return row_Q[own][real_q].numpy(), key_qK.cpu()[real_q].numpy()


def _write(file: _Writer | None, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    if file is not None:  # on rank 0
        file.write(parts)


class _Writer:
    """The file, users ascending."""

    def __init__(self, begun: Path, schema: pa.Schema) -> None:
        self._begun, self._schema = begun, schema
        begun.parent.mkdir(parents=True, exist_ok=True)
        self._opened = written(begun)
        self._stream = self._opened.__enter__()
        self._writer = pq.ParquetWriter(self._stream, schema, compression="zstd")

    def write(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
        row_n = np.concatenate([rows for rows, _ in parts])
        key_nK = np.concatenate([keys for _, keys in parts])
        score_nK, item_nK = (part.numpy() for part in decode_keys(torch.from_numpy(key_nK)))
        there_nK = item_nK >= 0
        offsets = np.concatenate([[0], np.cumsum(there_nK.sum(axis=1))]).astype(np.int32)
        columns = [
            pa.array(row_n, type=pa.int64()),
            pa.ListArray.from_arrays(offsets, pa.array(item_nK[there_nK], type=pa.int64())),
            pa.ListArray.from_arrays(offsets, pa.array(score_nK[there_nK], type=pa.float32())),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def finish(self, out: Path) -> None:
        self._writer.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._opened.__exit__(None, None, None)
        self._begun.rename(out)
