"""Layers of the transformer over packed sequences.

Tokens lie in blocks of sequences of one length (trainer/data/packing.py): perceptrons take all
tokens at once, attention a block at a time, without masks of padding.

Shapes: N tokens, D columns, H heads, K = D / H, m sequences of a block, l tokens of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.model_section import Block

Blocks = Sequence[tuple[int, int]]
"""(sequences, tokens of each), end to end."""


def build_layer(kind: Block, dim: int, heads: int, length: int, dropout: float) -> nn.Module:
    """A layer [N, D] -> [N, D]. length: most tokens of a sequence."""
    match kind:
        case "sasrec":
            return SasRecLayer(dim, heads, dropout)
        case "ligr":
            return LigrLayer(dim, heads, dropout)
        case "hstu":
            return HstuLayer(dim, heads, length, dropout)


class SasRecLayer(nn.Module):
    """Causal attention, then a perceptron with ReLU, each from normalised input and added to it
    (Kang and McAuley 2018, with the norms before)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.projection = nn.Linear(dim, 3 * dim)
        self.attended = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        start_as_mean(self.projection, self.attended, self.down)

    def forward(self, x_ND: Tensor, blocks: Blocks) -> Tensor:
        qkv_ND3 = self.projection(self.norms[0](x_ND))
        attended_ND = by_block(qkv_ND3, blocks, 3, self.heads, recent_attention)
        x_ND = x_ND + self.dropout(self.attended(attended_ND))
        hidden_NP = self.dropout(F.relu(self.up(self.norms[1](x_ND))))
        return x_ND + self.dropout(self.down(hidden_NP))


class LigrLayer(nn.Module):
    """Attention and a SwiGLU perceptron, each let through by a gate of what it is added to (the
    LiGR layer, Borisyuk et al. 2025, as eSASRec has it)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.projection = nn.Linear(dim, 3 * dim)
        self.attended = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, 8 * dim)
        self.down = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)
        start_as_mean(self.projection, self.attended, self.down)

    def forward(self, x_ND: Tensor, blocks: Blocks) -> Tensor:
        qkv_ND3 = self.projection(self.norms[0](x_ND))
        attended_ND = by_block(qkv_ND3, blocks, 3, self.heads, recent_attention)
        attended_ND = self.dropout(self.attended(attended_ND))
        x_ND = x_ND + attended_ND * torch.sigmoid(self.gates[0](x_ND))
        gate_NP, up_NP = self.up(self.norms[1](x_ND)).chunk(2, dim=1)
        made_ND = self.dropout(self.down(self.dropout(F.silu(gate_NP) * up_NP)))
        return x_ND + made_ND * torch.sigmoid(self.gates[1](x_ND))


class HstuLayer(nn.Module):
    """Pointwise attention: SiLU of scores with a bias by distance, in place of a softmax, and gated
    (Zhai et al. 2024). What is read counts by how much of it there is, too."""

    def __init__(self, dim: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.length = heads, length
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.projection = nn.Linear(dim, 4 * dim)
        self.attended = nn.Linear(dim, dim)
        self.bias_HL = nn.Parameter(torch.zeros(heads, length))
        """By how many tokens back."""
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_ND: Tensor, blocks: Blocks) -> Tensor:
        projected_ND4 = F.silu(self.projection(self.norms[0](x_ND)))
        gate_ND, qkv_ND3 = projected_ND4.tensor_split([x_ND.shape[1]], dim=1)
        attended_ND = by_block(qkv_ND3, blocks, 3, self.heads, self._attention)
        made_ND = self.attended(self.dropout(self.norms[1](attended_ND) * gate_ND))
        return x_ND + self.dropout(made_ND)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens = query.shape[2]
        place = torch.arange(tokens, device=query.device)
        back_ll = place[:, None] - place[None, :]
        bias_Hll = self.bias_HL[:, back_ll.clamp(min=0)]
        score_mHll = F.silu(query @ key.transpose(2, 3) + bias_Hll) / self.length
        return (score_mHll * (back_ll >= 0)) @ value


def start_as_mean(projection: nn.Linear, attended: nn.Linear, perceptron: nn.Linear) -> None:
    """First values by which a layer adds half of what its attention reads, as it stands, and its
    perceptron nothing: so the tower begins at a mean of recent items, not at noise."""
    dim = attended.in_features
    with torch.no_grad():
        projection.weight[2 * dim :] = torch.eye(dim)
        attended.weight.copy_(0.5 * torch.eye(dim))
        for bias in (projection.bias, attended.bias):
            bias.zero_()
        perceptron.weight.zero_()
        perceptron.bias.zero_()


def recent_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[m, H, l, K] each -> [m, H, l, K]: a token sees itself and those before it.

    What is one token further back counts for half in the first head, for a fourth root of that in
    the next, and so on, before anything is learnt (a bias linear in the distance, Press et al.
    2022).
    """
    heads, tokens = query.shape[1:3]
    place = torch.arange(tokens, device=query.device, dtype=query.dtype)
    back_ll = place[:, None] - place[None, :]
    slope_H11 = math.log(2) / 4.0 ** torch.arange(heads, device=query.device).view(-1, 1, 1)
    bias_Hll = (-slope_H11 * back_ll).masked_fill(back_ll < 0, -math.inf).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias_Hll)


def by_block(
    parts_NP: Tensor,
    blocks: Blocks,
    number: int,
    heads: int,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """`attention` of each block: [N, number x D] -> [N, D]."""
    if len(blocks) == 1:
        return _attended(parts_NP, blocks[0], number, heads, attention)
    sizes = [sequences * tokens for sequences, tokens in blocks]
    return torch.cat(
        [
            _attended(part, block, number, heads, attention)
            for part, block in zip(parts_NP.split(sizes), blocks, strict=True)
        ]
    )


def _attended(
    parts_NP: Tensor,
    block: tuple[int, int],
    number: int,
    heads: int,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    sequences, tokens = block
    width = parts_NP.shape[1] // number
    split = parts_NP.view(sequences, tokens, number, heads, width // heads)
    query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
    attended_mHlK = attention(query, key, value)
    return attended_mHlK.transpose(1, 2).reshape(sequences * tokens, width)
