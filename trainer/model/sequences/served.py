"""The sequence tower over lists of one padded length, as programs for serving take them.

Shapes: n rows, L places of a list, T items of it that the tower reads, D columns of a table.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.events.marks import KIND_BITS
from trainer.data.packing import Packed
from trainer.model.dense import DenseInputs
from trainer.model.inputs import Inputs
from trainer.model.sequences.tower import SequenceTower, has_known_item
from trainer.model.towers import zeros_where_nothing_is_known


class SequenceEncoding(nn.Module):
    """The tower and its dense inputs: what `Encoding` is to the others."""

    def __init__(self, tower: SequenceTower, dense: DenseInputs, inputs: Inputs) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower).cpu().eval()
        self.keys = inputs.query_dense
        self.dense = dense.only(self.keys)
        self.looked_up = tuple(key for key in inputs.query_keys if key != "history")
        self.user_reads, self.moment_reads = inputs.user_reads, inputs.moment_reads
        self.mark_keys = inputs.marks.keys if inputs.marks is not None else ()
        """Beside dense ones, int64 [n, L]: kinds and gaps of the list's items; 0 where not said."""

    def forward(
        self,
        parts: Mapping[str, Tensor],
        item_nLD: Tensor,
        is_item_nL: Tensor,
        dense: dict[str, Tensor],
    ) -> Tensor:
        """Looked-up features [n, D] by key, and the list's items, oldest first -> [n, D]; zeros for
        rows of which nothing is known."""
        in_order = {key: dense[key] for key in self.keys}
        parts = {**parts, **self.dense.embed(in_order)}
        packed = packed_of_padded(is_item_nL, self.tower.length, self._marks(dense))
        item_ID = item_nLD.flatten(0, 1)
        query_nD = self.tower(
            [parts[key] for key in self.user_reads],
            [parts[key] for key in self.moment_reads],
            item_ID,
            packed,
        )
        evidence = [*self.dense.evidence(in_order), has_known_item(item_ID, packed)]
        known = [parts[key] for key in self.looked_up]
        return zeros_where_nothing_is_known(query_nD, known, evidence)

    def _marks(self, dense: Mapping[str, Tensor]) -> Tensor | None:
        """As `Packed.mark_N` has them, [n, L]."""
        if not self.mark_keys:
            return None
        bits = {"history.kind": 0, "history.gap": KIND_BITS}
        return torch.stack([dense[key].clamp(min=0) << bits[key] for key in self.mark_keys]).sum(0)


class SequenceTowerProgram(nn.Module):
    """Embeddings [n, F + L, D] of the tower's other features, then of the list's items, the most
    recent last; zeros before the oldest."""

    def __init__(self, encoding: SequenceEncoding) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self, looked_up: Tensor, dense: dict[str, Tensor] | None = None) -> Tensor:
        keys = self.encoding.looked_up
        item_nLD = looked_up[:, len(keys) :]
        is_item_nL = (item_nLD != 0).any(2).long().cumsum(1) > 0
        # One by one: torch.export cannot load the program where no tensors are unbound.
        parts = {key: looked_up[:, place] for place, key in enumerate(keys)}
        return self.encoding(parts, item_nLD, is_item_nL, dense or {})  # type: ignore[no-any-return]


def packed_of_padded(is_item_nL: Tensor, limit: int, mark_nL: Tensor | None) -> Packed:
    """A sequence a row of the last `limit` places that hold an item, in one block. Places are those
    of the list's embeddings [n * L], and of what is marked of them."""
    rows, places = is_item_nL.shape
    order_nL = torch.argsort((~is_item_nL).long(), dim=1, stable=True)
    count_n = is_item_nL.sum(1)
    kept_n = count_n.clamp(max=limit)
    step_T = torch.arange(limit, device=is_item_nL.device)
    index_nT = ((count_n - kept_n).unsqueeze(1) + step_T).clamp(max=places - 1)
    row_n = torch.arange(rows, device=is_item_nL.device)
    place_nT = order_nL.gather(1, index_nT) + (row_n * places).unsqueeze(1)
    is_kept_nT = step_T < kept_n.unsqueeze(1)
    start_n = row_n * (limit + 1)
    place_N = F.pad(place_nT.masked_fill(~is_kept_nT, -1), (1, 0), value=-1).flatten()
    mark_N = None
    if mark_nL is not None:
        mark_N = mark_nL.flatten()[place_N.clamp(min=0)] * (place_N >= 0)
    return Packed(
        item_D=order_nL.new_zeros(0),
        place_N=place_N,
        position_N=F.pad((step_T + 1) * is_kept_nT, (1, 0)).flatten(),
        start_M=start_n,
        row_M=row_n,
        query_B=start_n + kept_n,
        blocks=((rows, limit + 1),),
        mark_N=mark_N,
    )
