"""What tables a model has, and TorchRec's module for them.

Shapes: N rows of a table, D columns, S rows (bags) of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from embeddings.choices import TablePrecision


@dataclass(frozen=True)
class Table:
    """One embedding table of `num_rows` x `dim`, read by one or several features."""

    name: str
    num_rows: int
    dim: int
    features: tuple[str, ...]
    """Keys of the batch's KeyedJaggedTensor that look rows up here. Bags are summed."""
    init_std: float = 0.1
    """Rows start as normal noise of this standard deviation (see `initialise`)."""
    precision: TablePrecision = "fp32"
    has_unknown_row: bool = False
    """The last row stands for ids the table does not know; it starts as zeros."""

    @property
    def known_rows(self) -> int:
        """Rows with an id of their own."""
        return self.num_rows - self.has_unknown_row

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.dim < 1:
            raise ValueError(
                f"table {self.name!r} would have {self.num_rows} rows of {self.dim} columns; "
                "both must be at least 1"
            )
        if self.dim % 4:
            raise ValueError(
                f"table {self.name!r} has dim {self.dim}; FBGEMM's kernels need a multiple of 4: "
                f"use {self.dim + 4 - self.dim % 4}"
            )


def build_embedding_bags(tables: Sequence[Table]) -> EmbeddingBagCollection:
    """An EmbeddingBagCollection of `tables` on the meta device: it has shapes and no memory.

    The output's keys are the features, in table order; each bag is the sum of its rows, and an
    empty bag is zeros [S, D].
    """
    return EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.num_rows,
                embedding_dim=table.dim,
                feature_names=list(table.features),
                pooling=PoolingType.SUM,
                data_type=DataType.FP32 if table.precision == "fp32" else DataType.FP16,
            )
            for table in tables
        ],
    )


# Rows are drawn in blocks, each from its own generator, so that a row's first value depends on the
# seed, the table and the row alone: never on how many ranks share the table.
ROWS_PER_BLOCK = 8192


def fill_rows(
    shard_ND: Tensor,
    first_row: int,
    table: Table,
    table_index: int,
    seed: int,
    chosen_N: Tensor | None = None,
) -> None:
    """Fill `shard_ND`, rows `first_row ...` of a table, with seeded normal noise, in place.

    The row for unknown ids becomes zeros: what is not known adds nothing.

    Args:
        chosen_N: fill these rows alone, bool on the shard's device; None: all.
    """
    generator = torch.Generator()
    last_row = first_row + shard_ND.shape[0]
    for block in range(first_row // ROWS_PER_BLOCK, -(-last_row // ROWS_PER_BLOCK)):
        begin = block * ROWS_PER_BLOCK
        low, high = max(begin, first_row), min(begin + ROWS_PER_BLOCK, last_row)
        here = slice(low - first_row, high - first_row)
        if chosen_N is not None and not chosen_N[here].any():
            continue
        # Mixing by odd constants keeps the seeds of (seed, table, block) apart.
        mixed = (seed * 0x9E3779B97F4A7C15 + table_index * 0xC2B2AE3D27D4EB4F + block) % (1 << 63)
        generator.manual_seed(mixed)
        noise = torch.randn(ROWS_PER_BLOCK, table.dim, generator=generator) * table.init_std
        noise = noise[low - begin : high - begin]
        if chosen_N is None:
            shard_ND[here].copy_(noise)
        else:
            rows = chosen_N[here].nonzero().squeeze(1)
            shard_ND[here].index_copy_(0, rows, noise.to(shard_ND)[rows])
    if table.has_unknown_row and last_row == table.num_rows and shard_ND.shape[0]:
        shard_ND[-1] = 0
