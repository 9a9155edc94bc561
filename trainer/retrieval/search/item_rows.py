"""One rank's item embeddings, as the search walks over them.

Tensor shapes: I items of the rank, N rows, D embedding width, G groups of items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.retrieval.search.filter import GROUP
from trainer.retrieval.search.keys import MAX_ITEM_ROW

LARGEST_VALUE = 1e15
"""Embeddings beyond this could overflow float32 in the GEMM."""


class ItemRows:
    """One rank's contiguous range of items, with what bounds the filter's rounding error.

    Memory: the embeddings as given (not copied) and 8 bytes per GROUP items.

    Args:
        unranked_X: items, counted from `first_row` and ascending, that no query is answered with.
    """

    def __init__(
        self, embedding_ID: Tensor, first_row: int = 0, unranked_X: Tensor | None = None
    ) -> None:
        last_row = first_row + embedding_ID.size(0) - 1
        if last_row > MAX_ITEM_ROW:
            raise Mistake(f"item row {last_row} is over the limit of {MAX_ITEM_ROW}.")
        self.embedding_ID = checked(embedding_ID, "item")
        self.first_row = first_row
        self.unranked_X = unranked_X
        bounds = [torch.stack(norms(part), dim=1) for part in self.embedding_ID.split(1 << 16)]
        self.bound_G2 = _group_max(torch.cat(bounds))

    def __len__(self) -> int:
        return self.embedding_ID.size(0)


def checked(embedding_ND: Tensor, name: str) -> Tensor:
    """The embeddings as contiguous float32, none of them NaN, infinite or huge."""
    embedding_ND = embedding_ND.float().contiguous()
    for part in embedding_ND.split(1 << 16):
        if not (part.abs().amax() <= LARGEST_VALUE if part.numel() else True):
            raise Mistake(
                f"a {name} embedding holds NaN or a value beyond {LARGEST_VALUE:g}; "
                "the training has diverged: lower the learning rate."
            )
    return embedding_ND


def norms(embedding_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Upper bounds of each row's norm and of the norm of what bfloat16 leaves off, [N] each.

    They are 1 % larger than computed: room for the bfloat16 operand's own norm and for rounding.
    """
    residual_ND = embedding_ND - embedding_ND.bfloat16()
    return embedding_ND.norm(dim=1) * 1.01, residual_ND.norm(dim=1) * 1.01


def _group_max(value_I2: Tensor) -> Tensor:
    padding = -len(value_I2) % GROUP
    return torch.nn.functional.pad(value_I2, (0, 0, 0, padding)).unflatten(0, (-1, GROUP)).amax(1)
