"""Embeddings of one rank's rows as a Parquet file, beside what the dataset says of them.

Tensor shapes: n rows, D embedding width.
"""

from __future__ import annotations

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

from trainer.data.features import CountColumn
from trainer.data.parquet import open_parquet
from trainer.distributed.ranks import Ranks
from trainer.files.writing import written
from trainer.retrieval.encode import is_known


class EmbeddingFile:
    """One rank's Parquet file of embeddings, beside columns of the dataset's table."""

    def __init__(
        self, folder: Path, ranks: Ranks, table_path: str, key: str, count: CountColumn
    ) -> None:
        self.key = key
        self.path = folder / f"part-{ranks.rank:05d}.parquet"
        self.source = open_parquet(table_path)
        wanted = ("raw_id", "title", count)
        self.columns = [c for c in wanted if c in self.source.schema_arrow.names]
        metadata = self.source.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.starts = list(accumulate(sizes, initial=0))
        self.read_group = lru_cache(maxsize=2)(self._read_group)
        self.writer: pq.ParquetWriter | None = None
        self.closing = ExitStack()
        self.closing.callback(self.source.close)
        self.mean_D: Tensor | None = None
        """Mean of what is known in the ranks' first blocks: rows are dealt by hash, so of any."""
        self.unknown = 0
        """Rows so far of which the model knows nothing."""

    def __enter__(self) -> EmbeddingFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.__exit__(*error)

    def write(self, row_n: np.ndarray, embedding_nD: Tensor) -> None:
        """Rows, consecutive, with their embeddings. Collective, for the first block."""
        known_n = is_known(embedding_nD)
        if self.mean_D is None:
            self.mean_D = _mean_of_all(embedding_nD[known_n])  # collective
        if not len(row_n) and self.writer is not None:
            return
        self.unknown += int((~known_n).sum())  # device-to-host sync
        embedding_nD = torch.where(known_n.unsqueeze(1), embedding_nD, self.mean_D)
        named = self._named(row_n)
        flat = pa.array(embedding_nD.float().cpu().numpy().reshape(-1))
        embedding = pa.FixedSizeListArray.from_arrays(flat, embedding_nD.size(1))
        columns = {c.removesuffix("_with_validation"): named.column(c) for c in self.columns}
        columns["known"] = pa.array(known_n.cpu().numpy())
        table = pa.table({self.key: pa.array(row_n), **columns, "embedding": embedding})
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


def _mean_of_all(embedding_nD: Tensor) -> Tensor:
    """Mean of all ranks' rows, [D]; zeros where there are none. Collective."""
    sums = torch.cat([embedding_nD.double().sum(0), embedding_nD.new_tensor([len(embedding_nD)])])
    dist.all_reduce(sums)  # collective
    return (sums[:-1] / sums[-1].clamp(min=1)).to(embedding_nD.dtype)
