"""The query tower over sequences: a causal transformer, all of whose positions are queries.

Shapes: B rows, M sequences, N tokens, D columns of a table, I looked-up items, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.kernels.widths import first_columns
from trainer.config.model_section import Block
from trainer.data.events.marks import GAPS, KIND_BITS, KIND_MASK, Marks
from trainer.data.packing import Packed
from trainer.model.sequences.blocks import build_layer


class SequenceTower(nn.Module):
    """A start that holds what is known of the user, then his items, oldest first.

    Each token's output is the query of who has met the items up to it; what a row says of its
    moment (the context) is added to it. Items are the candidates' own embeddings, with one of
    their place in the sequence.

    Args:
        length: most items of a sequence.
        marks: what they carry; an item of a kind that is not said is of the usual one.
    """

    def __init__(
        self,
        block: Block,
        length: int,
        dim: int,
        layers: int,
        heads: int,
        dropout: float,
        init_std: float,
        normalise: bool,
        marks: Marks | None = None,
    ) -> None:
        super().__init__()
        self.length, self.normalise, self.marks = length, normalise, marks
        self.columns: int | None = None
        """Columns of the output that are given; None: all."""
        self.start_D = nn.Parameter(torch.randn(dim) * init_std)
        self.position_LD = nn.Parameter(torch.randn(length + 1, dim) * init_std)
        kinds = marks.num_kinds if marks is not None and marks.kinds else 0
        gaps = GAPS if marks is not None and marks.gaps else 0
        self.kind_KD = nn.Parameter(torch.randn(kinds, dim) * init_std) if kinds else None
        self.gap_GD = nn.Parameter(torch.randn(gaps, dim) * init_std) if gaps else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            build_layer(block, dim, heads, length + 1, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        user_BD: Sequence[Tensor],
        context_BD: Sequence[Tensor],
        item_ID: Tensor,
        packed: Packed,
    ) -> Tensor:
        """Features of each row's user and moment, and looked-up items -> [B, D]; of rows that are
        asked for several times ([n x B]), that many."""
        is_item_N1 = (packed.place_N >= 0).unsqueeze(1)
        x_ND = item_ID.index_select(0, packed.place_N.clamp(min=0)) * is_item_N1
        if self.marks is not None:
            x_ND = x_ND + self._marked(packed, self.marks) * is_item_N1
        x_ND = x_ND + self.position_LD.index_select(0, packed.position_N)
        start_MD = self.start_D.expand(packed.start_M.shape[0], -1)
        if user_BD:
            start_MD = start_MD + torch.stack(list(user_BD)).sum(0).index_select(0, packed.row_M)
        x_ND = x_ND.index_add(0, packed.start_M, start_MD)
        x_ND = self.dropout(x_ND * x_ND.shape[1] ** 0.5)  # columns of about 1, as layers make them
        for layer in self.layers:
            x_ND = layer(x_ND, packed.blocks)
        query_BD = self.norm(x_ND.index_select(0, packed.query_B))
        if context_BD:
            moment_BD = torch.stack(list(context_BD)).sum(0)
            rows, moments = query_BD.shape[0], moment_BD.shape[0]
            if rows != moments:  # not len(): a program is exported for any number
                moment_BD = moment_BD.repeat(rows // moments, 1)
            query_BD = query_BD + moment_BD
        return first_columns(query_BD, self.columns, self.normalise)

    def _marked(self, packed: Packed, marks: Marks) -> Tensor:
        """What the marks of items add to them, [N, D]."""
        assert packed.mark_N is not None
        added = []
        if self.kind_KD is not None:
            kind_N = packed.mark_N & KIND_MASK
            kind_N = torch.where(kind_N == 0, marks.usual_kind, kind_N - 1)
            kind_N = kind_N.clamp(max=self.kind_KD.shape[0] - 1)
            added.append(self.kind_KD.index_select(0, kind_N))
        if self.gap_GD is not None:
            gap_N = (packed.mark_N >> KIND_BITS).clamp(max=GAPS - 1)
            added.append(self.gap_GD.index_select(0, gap_N))
        return torch.stack(added).sum(0)


def has_known_item(item_ID: Tensor, packed: Packed) -> Tensor:
    """Rows whose sequence has an item that the model knows, bool [B, 1]; a sequence a row.

    No row of a table is all zeros but those of what training never met.
    """
    known_N = (item_ID != 0).any(1).index_select(0, packed.place_N.clamp(min=0))
    known_N = known_N & (packed.place_N >= 0)
    before_N = F.pad(known_N.long().cumsum(0), (1, 0))
    seen_B = before_N[packed.query_B + 1] - before_N[packed.start_M]
    return (seen_B > 0).unsqueeze(1)
