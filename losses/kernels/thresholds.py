"""A row's threshold: the score of the item that is its K-th of the catalog, as the columns tell.

Each column stands for `copies / Q` of the catalog's items, Q being the expected number of columns
of its item in a step; without log Q for itself alone. The threshold is the score of the column at
which the columns above have come to K items. It needs no state: every step estimates it from its
columns, which all ranks have alike, so it is the same on any number of ranks and after a resume.

Shapes: B rows, C columns, S of them looked at, R rows of a stripe, D width, P places.
"""

import torch
from torch import Tensor

from losses.rows import Candidates, Rows
from losses.scores import shown_to_all

MOST_COLUMNS = 4096
"""Looked at: of more, so many, drawn by a hash of their items that each step salts."""
LEAST_PLACES = 128
"""Highest columns of a row that are looked at, at least: copies of popular items that are columns
each (without `negatives.distinct`) stand for less than an item."""
_ROWS_AT_ONCE = 1024
_ODD = -7046029254386353131  # 2**64 / golden ratio, as a signed odd int64


@torch.no_grad()
def row_thresholds(rows: Rows, candidates: Candidates, top_k: int, corrected: bool) -> Tensor:
    """[B] scores before the temperature, in the dtype of scores. No collective, no sync.

    corrected: columns' log Q is that of a step, and counts. Columns that stand for more than K
    items: the highest column's score. All that are looked at together less than K: the
    lowest's.
    """
    dtype = torch.promote_types(rows.query_BD.dtype, torch.float32)
    shown_C = shown_to_all(candidates)
    items_C = torch.ones_like(shown_C, dtype=dtype)
    if candidates.copies_C is not None:
        items_C = candidates.copies_C.to(dtype)
    if corrected:
        items_C = items_C * torch.exp(-torch.where(shown_C, candidates.logq_C, 0.0).to(dtype))
    items_C = torch.where(shown_C, items_C, 0.0)
    embedding_CD = candidates.embedding_CD.to(dtype).masked_fill(~shown_C[:, None], 0.0)
    if shown_C.shape[0] > MOST_COLUMNS:
        place_S = _drawn_columns(candidates.id_C, shown_C)
        share = items_C[place_S].sum() / items_C.sum().clamp(min=torch.finfo(dtype).tiny)
        items_C = items_C[place_S] / share.clamp(min=torch.finfo(dtype).tiny)
        embedding_CD, shown_C = embedding_CD[place_S], shown_C[place_S]
    query_BD = rows.query_BD.to(dtype).masked_fill((rows.weight_B == 0)[:, None], 0.0)
    hidden_C = torch.where(shown_C, 0.0, -torch.inf).to(dtype)
    places = min(max(4 * top_k, LEAST_PLACES), shown_C.shape[0])
    parts = [
        _of_stripe(query_RD @ embedding_CD.T + hidden_C, items_C, top_k, places)
        for query_RD in query_BD.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(parts) if parts else query_BD.new_zeros(0)


def _of_stripe(score_RS: Tensor, items_S: Tensor, top_k: int, places: int) -> Tensor:
    """[R]; 0 where no column is shown."""
    if places == 0:
        return score_RS.new_zeros(score_RS.shape[0])
    score_RP, place_RP = score_RS.topk(places, dim=1)
    before_RP = items_S[place_RP].cumsum(dim=1) - items_S[place_RP]
    # Rounding aside: a column counts that begins below K items.
    counts_RP = (before_RP < top_k * (1 - 1e-6)) & torch.isfinite(score_RP)
    last_R = counts_RP.sum(dim=1).clamp(min=1) - 1
    threshold_R = score_RP.gather(1, last_R[:, None])[:, 0]
    return torch.where(torch.isfinite(threshold_R), threshold_R, 0.0)


def _drawn_columns(id_C: Tensor, shown_C: Tensor) -> Tensor:
    """[S] places of shown columns, by a hash of their items: whatever their order."""
    salt = torch.where(shown_C, id_C, 0).sum()
    mixed_C = (id_C + salt) * _ODD
    mixed_C = (mixed_C ^ (mixed_C >> 31)) * _ODD
    rank_C = torch.where(shown_C, mixed_C >> 1, torch.iinfo(torch.int64).max)
    return rank_C.topk(MOST_COLUMNS, largest=False).indices
