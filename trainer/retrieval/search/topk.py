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

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.keys import EMPTY, MAX_ITEM_ROW, encode_keys, scores_of

Precision = Literal["float32", "bfloat16"]

GROUP = 64
"""Items under one maximum."""
PAIRS_AT_ONCE = 1 << 12
"""Pairs scored anew at once: few enough for their rows to stay in the cache."""
GROUPS_AT_ONCE = 1 << 14
"""Groups looked into at once: bounds the copy of their scores (4 MiB)."""
LARGEST_VALUE = 1e15
"""Embeddings beyond this could overflow float32 in the GEMM."""


@dataclass(frozen=True)
class Filter:
    """How the GEMM that filters runs. None of it changes the result."""

    precision: Precision = "float32"
    chunk_items: int = 2048
    """Items scored at once, a multiple of GROUP. Scores take chunk_items * queries * 4 bytes."""

    def __post_init__(self) -> None:
        if self.chunk_items <= 0 or self.chunk_items % GROUP:
            raise Mistake(
                f"chunk_items is {self.chunk_items}; it must be a positive multiple of {GROUP}."
            )

    @staticmethod
    def best_for(device: torch.device) -> Filter:
        """The fastest on this device; on a CPU, where bfloat16 may be emulated, by trying both."""
        if device.type == "cuda":
            return Filter("bfloat16", chunk_items=1 << 16)
        return Filter(_faster_precision(), chunk_items=4096)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "float32" else torch.bfloat16


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
        self.embedding_ID = _checked(embedding_ID, "item")
        self.first_row = first_row
        self.unranked_X = unranked_X
        bounds = [torch.stack(_norms(part), dim=1) for part in self.embedding_ID.split(1 << 16)]
        self.bound_G2 = _group_max(torch.cat(bounds))

    def __len__(self) -> int:
        return self.embedding_ID.size(0)


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


class _UnrankedByChunk:
    """Rows of each chunk's scores that no query is answered with."""

    def __init__(self, items: ItemRows, chunk_items: int) -> None:
        self.row_X, self.bounds = items.unranked_X, None
        if self.row_X is not None and len(self.row_X):
            starts = torch.arange(
                0, len(items) + chunk_items, chunk_items, device=self.row_X.device
            )
            self.bounds = torch.searchsorted(self.row_X, starts).tolist()  # sync, once a block
            self.place_X = self.row_X % chunk_items

    def remove(self, chunk: int, score_NQ: Tensor) -> None:
        """Put -inf at the chunk's unranked items."""
        if self.bounds is not None and self.bounds[chunk] < self.bounds[chunk + 1]:
            rows = self.place_X[self.bounds[chunk] : self.bounds[chunk + 1]]
            score_NQ.index_fill_(0, rows, -torch.inf)


class _SeenByChunk:
    """Seen pairs of a block ordered by chunk, so that removing a chunk's pairs is one call."""

    def __init__(self, seen: ItemLists | None, items: ItemRows, chunk_items: int) -> None:
        self.bounds = None
        if seen is None or seen.values.numel() == 0:
            return
        row = seen.values - items.first_row
        mine = ((row >= 0) & (row < len(items))).nonzero().squeeze(1)
        row, order = row[mine].sort()
        self.place = (row % chunk_items) * len(seen) + seen.owners()[mine[order]]
        starts = torch.arange(0, len(items) + chunk_items, chunk_items, device=row.device)
        self.bounds = torch.searchsorted(row, starts).tolist()  # device-to-host sync, once a block

    def remove(self, chunk: int, score_NQ: Tensor) -> None:
        """Put -inf at the chunk's seen items."""
        if self.bounds is not None and self.bounds[chunk] < self.bounds[chunk + 1]:
            pairs = self.place[self.bounds[chunk] : self.bounds[chunk + 1]]
            score_NQ.view(-1).index_fill_(0, pairs, -torch.inf)


class _Best:
    """The k best keys so far of every query of a block, and the pairs that wait to be merged in."""

    def __init__(self, items: ItemRows, query_QD: Tensor, k: int) -> None:
        self.items, self.query_QD, self.k = items, query_QD, k
        self.key_QK = torch.full((len(query_QD), k), EMPTY, device=query_QD.device)
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.num_waiting = 0

    def add(self, query_P: Tensor, item_P: Tensor) -> None:
        """Pairs of a query of the block and an item, counted from the rank's first row."""
        self.waiting.append((query_P, item_P))
        self.num_waiting += query_P.numel()

    def merge(self) -> None:
        """Fold the waiting pairs in, 4k a query at once, so that one greedy query stays cheap."""
        if not self.num_waiting:
            return
        query_P = torch.cat([query for query, _ in self.waiting])
        item_P = torch.cat([item for _, item in self.waiting])
        self.waiting, self.num_waiting = [], 0
        query_P, order = query_P.sort()
        key_P = self._keys(query_P, item_P[order])
        row, row_P, count = torch.unique_consecutive(
            query_P, return_inverse=True, return_counts=True
        )
        place_P = torch.arange(len(query_P), device=row.device) - (count.cumsum(0) - count)[row_P]
        width = 4 * self.k
        for first in range(0, int(count.max()), width):  # device-to-host sync
            now = ((place_P >= first) & (place_P < first + width)).nonzero().squeeze(1)
            touched, slot = torch.unique_consecutive(row_P[now], return_inverse=True)
            table = torch.full((len(touched), self.k + width), EMPTY, device=row.device)
            table[:, : self.k] = self.key_QK[row[touched]]
            table[slot, self.k + place_P[now] - first] = key_P[now]
            self.key_QK[row[touched]] = table.topk(self.k, dim=1).values

    def _keys(self, query_P: Tensor, item_P: Tensor) -> Tensor:
        """Exact keys of pairs."""
        keys = []
        parts = zip(query_P.split(PAIRS_AT_ONCE), item_P.split(PAIRS_AT_ONCE), strict=True)
        for query, item in parts:
            product_PD = self.query_QD.index_select(0, query)
            product_PD *= self.items.embedding_ID.index_select(0, item)
            score_P = product_PD.sum(1, dtype=torch.float64)
            keys.append(encode_keys(score_P, item + self.items.first_row))
        return torch.cat(keys)

    def threshold(self) -> Tensor:
        """What a later item must score at least to be among the k best, [Q]."""
        kth_Q = scores_of(self.key_QK[:, -1])
        # A later item loses a tie, so a k-th score of zero asks for more than zero: then a query or
        # a group of items that is all zeros passes nothing on.
        return kth_Q.masked_fill(kth_Q == 0, torch.finfo(torch.float32).tiny)


class Search:
    """The search of one block of queries on its walk over the chunks of items, in order."""

    def __init__(
        self, items: ItemRows, query_QD: Tensor, seen: ItemLists | None, k: int, how: Filter
    ) -> None:
        if k < 1:
            raise Mistake(f"k is {k}; it must be at least 1.")
        query_QD = _checked(query_QD, "query")
        self.items, self.k, self.how = items, k, how
        self.num_chunks = -(-len(items) // how.chunk_items)
        self.removed = _SeenByChunk(seen, items, how.chunk_items)
        self.unranked = _UnrankedByChunk(items, how.chunk_items)
        num_queries, width = query_QD.shape
        self.best = _Best(items, query_QD, k)
        self.threshold_Q = torch.full((num_queries,), -torch.inf, device=query_QD.device)
        self.filter_DQ = query_QD.to(how.dtype).T
        rows = min(how.chunk_items, -(-len(items) // GROUP) * GROUP)
        self.score_NQ = query_QD.new_empty((rows, num_queries), dtype=how.dtype)
        self.chunk_ND = query_QD.new_empty((rows, width), dtype=how.dtype)
        self.norm_Q, self.residual_Q = _norms(query_QD)
        # |filter score, not yet rounded to dtype - exact score| <= slack . (item norm, residual):
        # with q' and x' the operands as the GEMM sees them, q.x - q'.x' = (q - q').x + q'.(x - x'),
        # each bounded by the product of norms; the rest is what summing the products rounds off.
        per_norm_Q = self.norm_Q * _accumulated_rounding(width)
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


def _checked(embedding_ND: Tensor, name: str) -> Tensor:
    """The embeddings as contiguous float32, none of them NaN, infinite or huge."""
    embedding_ND = embedding_ND.float().contiguous()
    for part in embedding_ND.split(1 << 16):
        if not (part.abs().amax() <= LARGEST_VALUE if part.numel() else True):
            raise Mistake(
                f"a {name} embedding holds NaN or a value beyond {LARGEST_VALUE:g}; "
                "the training has diverged: lower the learning rate."
            )
    return embedding_ND


def _norms(embedding_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Upper bounds of each row's norm and of the norm of what bfloat16 leaves off, [N] each.

    They are 1 % larger than computed: room for the bfloat16 operand's own norm and for rounding.
    """
    residual_ND = embedding_ND - embedding_ND.bfloat16()
    return embedding_ND.norm(dim=1) * 1.01, residual_ND.norm(dim=1) * 1.01


def _group_max(value_I2: Tensor) -> Tensor:
    padding = -len(value_I2) % GROUP
    return torch.nn.functional.pad(value_I2, (0, 0, 0, padding)).unflatten(0, (-1, GROUP)).amax(1)


@cache
def _faster_precision() -> Precision:
    """Of this machine's GEMMs; tried once, not in every evaluation while training."""
    seconds = {kind: _gemm_seconds(Filter(kind)) for kind in get_args(Precision)}
    return "bfloat16" if seconds["bfloat16"] < seconds["float32"] else "float32"


def _gemm_seconds(how: Filter) -> float:
    """The shortest of a few runs of a small filter step."""
    operand = torch.ones((1024, 64), dtype=how.dtype)
    score = torch.empty((1024, 1024), dtype=how.dtype)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(operand, operand.T, out=score)
        score.unflatten(0, (-1, GROUP)).amax(1)
        times.append(time.perf_counter() - started)
    return min(times)


def _accumulated_rounding(width: int) -> float:
    """Relative error of the GEMM's sum of `width` products, and of the threshold's arithmetic.

    `torch.set_float32_matmul_precision` lets float32 GEMMs run in TF32 or bfloat16.
    """
    unit = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}[
        torch.get_float32_matmul_precision()
    ]
    return 2 * (width + 8) * 2.0**-24 + 3 * unit
