"""Exact top-k of a block of queries over one rank's item rows, in bounded memory.

Item chunks are scored by a GEMM into one reused buffer. The GEMM only *filters*: an item goes on
when its score could reach the query's current k-th, given a proven bound on the GEMM's rounding;
the few that go on are scored anew, pair by pair: float32 products summed in float64. So the result
depends neither on the chunks, nor on the GEMM's precision, nor on the world size, and the filter
may run in bfloat16.

    items ──GEMM──> scores_NQ ──-inf at seen items──> group maxima ──> few groups ──> few items
                                                                          pair by pair <──┘
                                        threshold_Q <── k best keys <── merged now and then

Tensor shapes: Q queries of the block, N items of a chunk, G groups of GROUP items in a chunk,
I items of the rank, D embedding width, K = k, P pairs (query, item) that passed the filter.
No collectives run here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.retrieval.search.best_keys import BestKeys
from trainer.retrieval.search.filter import GROUP, Filter, accumulated_rounding
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.item_rows import ItemRows, checked, norms
from trainer.retrieval.search.left_out import SeenByChunk, UnrankedByChunk

GROUPS_AT_ONCE = 1 << 14
"""Groups looked into at once: bounds the copy of their scores (4 MiB)."""


def exact_topk(
    items: ItemRows, query_QD: Tensor, seen: ItemLists | None, k: int, how: Filter | None = None
) -> Tensor:
    """The k best items of every query among the rank's rows, as keys int64 [Q, k], best first.

    `seen` holds, for every query, global item rows to leave out. Equal scores rank the lower item
    row first; slots beyond the items that remain are `EMPTY`.
    """
    search = Search(items, query_QD, seen, k, how or Filter())
    for chunk in range(search.num_chunks):
        search.walk(chunk)
    return search.keys()


class Search:
    """The search of one block of queries on its walk over the chunks of items, in order."""

    def __init__(
        self, items: ItemRows, query_QD: Tensor, seen: ItemLists | None, k: int, how: Filter
    ) -> None:
        if k < 1:
            raise Mistake(f"k is {k}; it must be at least 1.")
        query_QD = checked(query_QD, "query")
        self.items, self.k, self.how = items, k, how
        self.num_chunks = -(-len(items) // how.chunk_items)
        self.removed = SeenByChunk(seen, items, how.chunk_items)
        self.unranked = UnrankedByChunk(items, how.chunk_items)
        num_queries, width = query_QD.shape
        self.best = BestKeys(items, query_QD, k)
        self.threshold_Q = torch.full((num_queries,), -torch.inf, device=query_QD.device)
        self.filter_DQ = query_QD.to(how.dtype).T
        rows = min(how.chunk_items, -(-len(items) // GROUP) * GROUP)
        self.score_NQ = query_QD.new_empty((rows, num_queries), dtype=how.dtype)
        self.chunk_ND = query_QD.new_empty((rows, width), dtype=how.dtype)
        self.norm_Q, self.residual_Q = norms(query_QD)
        # |filter score, not yet rounded to dtype - exact score| <= slack . (item norm, residual):
        # with q' and x' the operands as the GEMM sees them, q.x - q'.x' = (q - q').x + q'.(x - x'),
        # each bounded by the product of norms; the rest is what summing the products rounds off.
        per_norm_Q = self.norm_Q * accumulated_rounding(width)
        per_residual_Q = torch.zeros_like(per_norm_Q)
        if how.precision == "bfloat16":
            per_norm_Q, per_residual_Q = per_norm_Q + self.residual_Q, self.norm_Q
        self.slack_Q2 = torch.stack([per_norm_Q, per_residual_Q], dim=1)

    def walk(self, chunk: int) -> None:
        """Score one chunk and keep what can be among the k best."""
        first = chunk * self.how.chunk_items
        score_NQ = self._filter_scores(first)
        self.removed.remove(chunk, score_NQ)
        self.unranked.remove(chunk, score_NQ)
        score_GNQ = score_NQ.unflatten(0, (-1, GROUP))
        bound_G2 = self.items.bound_G2[first // GROUP :][: len(score_GNQ)]
        margin_Q = self.slack_Q2 @ bound_G2.amax(0)
        hot_S2 = _groups_reaching(self._bound(self.threshold_Q, margin_Q), score_GNQ)
        if len(hot_S2) * 2 > len(score_GNQ) * len(margin_Q):
            self._raise_threshold(score_NQ, margin_Q)
            hot_S2 = _groups_reaching(self._bound(self.threshold_Q, margin_Q), score_GNQ)
        for part_S2 in hot_S2.split(GROUPS_AT_ONCE):
            group_S, query_S = part_S2.unbind(1)
            margin_S = (self.slack_Q2[query_S] * bound_G2[group_S]).sum(1)
            bound_S1 = self._bound(self.threshold_Q[query_S], margin_S)[:, None]
            score_SN = score_GNQ[group_S, :, query_S]
            pair_P, place_P = (score_SN >= bound_S1).nonzero().unbind(1)  # device-to-host sync
            self.best.add(query_S[pair_P], first + group_S[pair_P] * GROUP + place_P)
        if self.best.num_waiting > 2 * self.best.key_QK.numel() or first == 0:
            self.best.merge()
            self.threshold_Q = torch.maximum(self.threshold_Q, self.best.threshold())

    def keys(self) -> Tensor:
        """The k best keys [Q, k], once all chunks are walked."""
        self.best.merge()
        return self.best.key_QK

    def _filter_scores(self, first: int) -> Tensor:
        """Filter scores of items first.. of the rank, [N, Q] with N rounded up to whole groups."""
        item_ND = self.items.embedding_ID[first : first + self.how.chunk_items]
        if self.how.dtype != item_ND.dtype:
            item_ND = self.chunk_ND[: len(item_ND)].copy_(item_ND)
        torch.mm(item_ND, self.filter_DQ, out=self.score_NQ[: len(item_ND)])
        rows = -(-len(item_ND) // GROUP) * GROUP
        self.score_NQ[len(item_ND) : rows] = -torch.inf
        return self.score_NQ[:rows]

    def _bound(self, threshold: Tensor, margin: Tensor) -> Tensor:
        """Filter scores at or above it may belong to the k best, in the filter's dtype.

        Rounding to dtype is monotone, so rounding the bound as the GEMM rounds its output loses
        nothing. The lowest finite value means "no threshold yet" and keeps seen items (-inf) out.
        """
        return (threshold - margin).to(self.how.dtype).clamp_(min=torch.finfo(self.how.dtype).min)

    def _raise_threshold(self, score_NQ: Tensor, margin_Q: Tensor) -> None:
        """Raise the threshold by the chunk's own k-th filter score, where much of it would pass."""
        part = GROUP
        while part > 1 and len(score_NQ) // part < 2 * self.k:
            part //= 2
        maximum_GQ = score_NQ.unflatten(0, (-1, part)).amax(1)
        if len(maximum_GQ) < self.k:
            return
        kth_Q = maximum_GQ.T.topk(self.k, dim=1).values[:, -1].float()
        lowest_Q = kth_Q - kth_Q.abs() * torch.finfo(self.how.dtype).eps - margin_Q
        self.threshold_Q = torch.maximum(self.threshold_Q, lowest_Q)


def _groups_reaching(bound_Q: Tensor, score_GNQ: Tensor) -> Tensor:
    """(group, query) of the groups with a score at or above the query's bound, int64 [S, 2].

    Floats above zero are ordered as the integers with their bits are, and those below zero are
    below as integers too. Maxima of integers need no care for NaN and, in 16 bits, no conversion:
    they cost a fifth as much.
    """
    if bool(bound_Q.amin() > 0):  # device-to-host sync
        integers = torch.int16 if bound_Q.dtype == torch.bfloat16 else torch.int32
        bound_Q, score_GNQ = bound_Q.view(integers), score_GNQ.view(integers)
    return (score_GNQ.amax(1) >= bound_Q).nonzero()  # device-to-host sync
