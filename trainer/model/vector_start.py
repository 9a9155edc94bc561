"""Vector start: rows of the item table begin at vectors that the dataset has of the items.

Texts or images then place an item before anybody has met it. Shapes: n items of a block, W columns
of a vector, D columns of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embeddings.sharding import sharded_weights
from trainer.base.mistake import Mistake
from trainer.data.feature_types import Attribute
from trainer.data.features import read_table_rows
from trainer.data.schema import Dataset
from trainer.data.vectors import Vectors
from trainer.model.dense import VectorInput

ROWS_AT_ONCE = 8192


@torch.no_grad()
def start_at_vectors(
    model: nn.Module, dataset: Dataset, name: str, init_std: float, seed: int, from_row: int = 0
) -> None:
    """Set this rank's rows of the table "item" to projections of the items' vectors `name`.

    All have the length that noise of `init_std` has on average. Items without a vector keep what
    they have, and so do rows that rare items share. No collective; a rank reads the vectors of its
    own rows, some at a time.

    Args:
        from_row: of a table that has grown, the first row to set.
    """
    attribute = vector_attribute(dataset, name)
    vectors = Vectors(dataset, attribute)
    weights = {key.split(".")[-2]: weight for key, weight in sharded_weights(model).items()}
    dim = int(weights["item"].size()[1])
    projection_WD = projection(attribute.width, dim, seed)
    item_of_row = _items_of_rows(dataset)
    for piece in weights["item"].local_shards():
        first = int(piece.metadata.shard_offsets[0])
        last = min(first + len(piece.tensor), dataset.rows_of_table("item"))
        for begin in range(max(first, from_row), last, ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, last)
            vector_nW = torch.from_numpy(vectors.take(item_of_row(begin, end)).astype(np.float32))
            row_nD = F.normalize(vector_nW, dim=1) @ projection_WD
            row_nD = F.normalize(row_nD, dim=1) * (init_std * math.sqrt(dim))
            there_n1 = VectorInput.is_there(vector_nW).to(piece.tensor.device)
            rows_nD = piece.tensor[begin - first : end - first]
            rows_nD.copy_(torch.where(there_n1, row_nD.to(rows_nD), rows_nD))


def _items_of_rows(dataset: Dataset) -> Callable[[int, int], np.ndarray]:
    """Items of rows begin..end of the table; -1: a row that rare items share."""
    if "item" not in dataset.table_rows:
        return np.arange
    row_I = read_table_rows(dataset, "item")
    own = np.flatnonzero(row_I >= dataset.table_rows["item"].shared)
    item_of_row = np.full(dataset.rows_of_table("item"), -1, dtype=np.int64)
    item_of_row[row_I[own]] = own
    return lambda begin, end: item_of_row[begin:end]


def projection(width: int, dim: int, seed: int) -> Tensor:
    """A random projection [W, D] with orthonormal columns, or rows where D is the larger."""
    generator = torch.Generator().manual_seed(seed)
    most, least = max(width, dim), min(width, dim)
    drawn = torch.randn(most, least, generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(drawn).Q.float()
    return orthonormal if width >= dim else orthonormal.T


def vector_attribute(dataset: Dataset, name: str) -> Attribute:
    """The items' vectors called `name`.

    Raises:
        Mistake: where the dataset has none of that name.
    """
    found = {each.name: each for each in dataset.item_attributes if each.kind == "vector"}
    if name not in found:
        there = f"it has {', '.join(found)}" if found else "it has none"
        raise Mistake(
            f"model.item_vectors={name!r}: the dataset has no such vectors of items ({there}); "
            "give them to `tandem prepare` (--item-vectors FILE)"
        )
    return found[name]
