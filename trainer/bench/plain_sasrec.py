"""SASRec in plain PyTorch as its users write it: padded sequences, sampled negatives, Adam.

Shapes: m sequences, L positions, D columns, K negatives a position.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainSasRec(nn.Module):
    """Items from 1 on; 0 is padding, before the oldest item."""

    def __init__(self, items: int, length: int, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.item = nn.Embedding(items + 1, dim, padding_idx=0)
        self.position = nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(
            dim, heads, dim, 0.0, activation="relu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, item_mL: Tensor) -> Tensor:
        """[m, L, D]: what each position makes of the items up to it."""
        length, device = item_mL.shape[1], item_mL.device
        x_mLD = self.item(item_mL) + self.position(torch.arange(length, device=device))
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        return self.norm(self.encoder(x_mLD, mask=causal_LL))  # type: ignore[no-any-return]

    def loss(self, item_mL: Tensor, next_mL: Tensor, negative_mLK: Tensor) -> Tensor:
        """Softmax of the next item among K drawn ones, mean over real positions."""
        candidate_mLK = torch.cat([next_mL.unsqueeze(2), negative_mLK], dim=2)
        score_mLK = torch.einsum("mld,mlkd->mlk", self(item_mL), self.item(candidate_mLK))
        target_N = torch.zeros_like(next_mL).flatten()
        loss_N = F.cross_entropy(score_mLK.flatten(0, 1), target_N, reduction="none")
        real_N = (next_mL != 0).flatten()
        return (loss_N * real_N).sum() / real_N.sum()


def padded(values: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """The last `length` + 1 items of each sequence, counted from 1, zeros before them."""
    rows = np.zeros((len(lengths), length + 1), dtype=np.int64)
    for row, items in zip(rows, np.split(values, np.cumsum(lengths)[:-1]), strict=True):
        last = items[-length - 1 :]
        row[len(row) - len(last) :] = last + 1
    return rows
