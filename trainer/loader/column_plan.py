"""What a rank encodes and sends in a step, and the columns that become of it: each item once.

A batch from a long-tailed catalog repeats items, and equal columns have equal scores: m of them are
one with m copies (`losses.Candidates.copies_C`). So of all ranks' candidates each distinct item is
encoded and sent by one rank alone, one that has it among its own, chosen by a hash of its id. Every
rank makes the same plan from what all ranks' candidates are; where that lies on the host, nothing
here waits for a device, and the shapes of the step are known before it begins.

A user's disliked item is a column of its own, which that user alone sees; so is a mined one.

Shapes: W ranks, B rows of a rank, E further candidates, S = B + E, N = W * S, L of them columns, G
distinct; U candidates that this rank encodes, X that each rank sends (padded to the most of any
rank), C = W * X columns; P rows or further candidates of all ranks, in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HASH_MULTIPLIER = -7046029254386353131  # 2**64 / golden ratio, as a signed odd int64


@dataclass(frozen=True)
class Entries:
    """Rows or further candidates of all ranks, one by one in rank order; user and id -1 is none."""

    user_P: Tensor
    id_P: Tensor
    count_P: Tensor
    """Train interactions of the item."""
    column_P: Tensor
    """The column that holds the item; -1 none."""
    weight_P: Tensor
    """float32; 0 of further candidates."""


@dataclass(frozen=True)
class ColumnPlan:
    """Equal on all ranks but for what this rank encodes and sends. int64 where nothing is said."""

    encoded_U: Tensor
    """Bags (of the batch's S) whose candidates this rank encodes: a bag of each item it needs."""
    place_B: Tensor
    """Of each row's own candidate, among the encoded; 0 in padding."""
    sent_X: Tensor
    """What this rank sends, among the encoded; padded with 0."""
    id_C: Tensor
    """-1 in padding."""
    count_C: Tensor
    visible_to_C: Tensor
    """The user that alone sees the column; -1 all do."""
    copies_C: Tensor
    """float32: candidates that are the column; 0 in padding."""
    drawn: Tensor
    """float64 [2]: rows' candidates and further ones among the columns, copies counted, dislikes
    not."""
    positives: Entries | None
    """All ranks' rows that are positives, in place of others and of padding none. None: not asked
    for."""
    extras: Entries | None
    """All ranks' further candidates; None as well."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> ColumnPlan:
        """Every tensor by `move`: to a device, or into page-locked memory."""
        return _moved(self, move)

    def own(self, rank: int) -> slice:
        """The columns that a rank sends."""
        return slice(rank * len(self.sent_X), (rank + 1) * len(self.sent_X))


def _moved(holder: Any, move: Callable[[Tensor], Tensor]) -> Any:
    values = {field.name: getattr(holder, field.name) for field in fields(holder)}
    return replace(
        holder,
        **{
            name: move(value) if isinstance(value, Tensor) else _moved(value, move)
            for name, value in values.items()
            if value is not None
        },
    )


def side_of(batch: Any) -> Tensor:
    """[S, 5] of a batch's candidates: item, count, user, feedback, bits of the weight; int64.

    Further candidates are nobody's: user -1, weight 0; but for mined ones, which are their row's
    user's as what it dislikes is.
    """
    extra = batch.item_S.shape[0] - batch.user_B.shape[0]
    user_M = batch.user_B.repeat_interleave(batch.mined)
    drawn = extra - len(user_M)
    feedback_S = F.pad(batch.feedback_B.long(), (0, drawn), value=1)
    return torch.stack(
        [
            batch.item_S,
            batch.count_S,
            torch.cat([F.pad(batch.user_B, (0, drawn), value=-1), user_M]),
            F.pad(feedback_S, (0, len(user_M)), value=-1),
            F.pad(batch.weight_B.view(torch.int32).long(), (0, extra)),
        ],
        dim=1,
    )


def weights_of(side_NK: Tensor) -> Tensor:
    """[N] float32, from their bits."""
    return side_NK[:, 4].to(torch.int32).view(torch.float32)


def make_plan(
    side_NK: Tensor,
    world_size: int,
    rank: int,
    num_rows: int,
    *,
    in_batch: bool,
    disliked_negatives: bool,
    mined: bool,
    distinct: bool,
    told: bool,
) -> ColumnPlan:
    """The plan of a step. No collective; syncs where `side_NK` is on a device.

    Args:
        side_NK: `side_of` each rank's batch, rank after rank.
        num_rows: B, rows of a rank.
        in_batch: rows' candidates are columns.
        disliked_negatives: those of disliked rows are columns of their user.
        mined: further candidates of feedback -1 are such, too.
        distinct: equal columns are made one; else each is its own.
        told: rows and further candidates are told one by one.
    """
    id_N, count_N, user_N, feedback_N, _ = side_NK.unbind(dim=1)
    size = len(id_N) // world_size
    is_row_N = (torch.arange(size, device=id_N.device) < num_rows).repeat(world_size)
    disliked_N = feedback_N < 0
    of_user_N = (is_row_N & disliked_negatives) | (~is_row_N & mined)
    wanted_N = torch.where(disliked_N, of_user_N, in_batch | ~is_row_N)
    live_N = wanted_N & (id_N >= 0)
    visible_N = torch.where(disliked_N, user_N, -1)
    items = _items(id_N, distinct)
    entry_L, start_G = _groups(items, live_N, visible_N if disliked_negatives or mined else None)
    copies_G = torch.diff(start_G, append=start_G.new_tensor([len(entry_L)]))
    source_G = _sources(entry_L, start_G, copies_G, id_N)
    order_G, sent_W = _by_rank(source_G, size, world_size)
    most = max(1, max(sent_W))
    column_G = _columns(order_G, sent_W, most)
    column_N = torch.full_like(id_N, -1)
    column_L = torch.repeat_interleave(column_G, copies_G, output_size=len(entry_L))
    column_N.scatter_(0, entry_L, column_L)
    encoded_U, place_S = _encoded(items, id_N, source_G, is_row_N, size, rank)
    before = sum(sent_W[:rank])
    sent_G = order_G[before : before + sent_W[rank]]

    def of_columns(value_N: Tensor, padding: int) -> Tensor:
        value_C = value_N.new_full((world_size * most,), padding)
        return value_C.scatter_(0, column_G, value_N.index_select(0, source_G))

    copies_C = torch.zeros(world_size * most, device=id_N.device)
    copies_C.scatter_(0, column_G, copies_G.float())
    of_rows = (live_N & is_row_N & ~disliked_N).sum()
    return ColumnPlan(
        encoded_U=encoded_U,
        place_B=place_S[:num_rows],
        sent_X=F.pad(place_S[source_G[sent_G] - rank * size], (0, most - len(sent_G))),
        id_C=of_columns(id_N, -1),
        count_C=of_columns(count_N, 0),
        visible_to_C=of_columns(visible_N, -1),
        copies_C=copies_C,
        drawn=torch.stack([of_rows, (live_N & ~is_row_N & ~disliked_N).sum()]).double(),
        positives=_entries(side_NK, column_N, is_row_N) if told else None,
        extras=_entries(side_NK, column_N, ~is_row_N) if told else None,
    )


class _Items(NamedTuple):
    """Candidates by item."""

    order_N: Tensor
    """Candidates in the order of their items, those of one in theirs."""
    number_N: Tensor
    """Of each candidate's item among the items, which are numbered from 0 in order."""


def _items(id_N: Tensor, distinct: bool) -> _Items:
    """Not `distinct`: each candidate is an item of its own."""
    if not distinct:
        number_N = torch.arange(len(id_N), device=id_N.device)
        return _Items(number_N, number_N)
    sorted_N, order_N = torch.sort(id_N, stable=True)
    is_next_N = F.pad(sorted_N[1:] != sorted_N[:-1], (1, 0))
    number_N = torch.empty_like(order_N).scatter_(0, order_N, is_next_N.cumsum(0))
    return _Items(order_N, number_N)


def _groups(items: _Items, live_N: Tensor, visible_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """(entry_L, start_G): the columns' candidates, equal ones side by side, and where each group of
    equal ones begins. visible_N: users that alone see a column, if there are such."""
    entry_L = items.order_N.masked_select(live_N.index_select(0, items.order_N))
    key_L = items.number_N.index_select(0, entry_L)
    if visible_N is not None and len(entry_L):
        visible_L = visible_N.index_select(0, entry_L)
        key_L = key_L * (visible_L.max() + 2) + visible_L + 1
        key_L, order_L = torch.sort(key_L, stable=True)
        entry_L = entry_L.index_select(0, order_L)
    is_first_L = F.pad(key_L[1:] != key_L[:-1], (1, 0), value=True)[: len(key_L)]
    return entry_L, is_first_L.nonzero().view(-1)


def _sources(entry_L: Tensor, start_G: Tensor, copies_G: Tensor, id_N: Tensor) -> Tensor:
    """[G] the candidate that each group's column is made of: any, by a hash, so that each rank
    sends about as many."""
    hash_G = (
        (id_N.index_select(0, entry_L.index_select(0, start_G)) * HASH_MULTIPLIER) >> 33
    ) & 0x7FFFFFFF
    return entry_L.index_select(0, start_G + hash_G % copies_G)


def _by_rank(source_G: Tensor, size: int, world_size: int) -> tuple[Tensor, list[int]]:
    """(groups in the order of the ranks that send them, how many each rank sends)."""
    rank_G = torch.div(source_G, size, rounding_mode="floor")
    sent_W: list[int] = torch.bincount(rank_G, minlength=world_size).tolist()
    return torch.argsort(rank_G, stable=True), sent_W


def _columns(order_G: Tensor, sent_W: list[int], most: int) -> Tensor:
    """[G] the column of each group: `most` a rank, rank after rank."""
    first = torch.arange(len(sent_W), device=order_G.device) * most
    before = torch.tensor([0, *sent_W[:-1]], device=order_G.device).cumsum(0)
    shift_G = torch.repeat_interleave(
        first - before, torch.tensor(sent_W, device=order_G.device), output_size=len(order_G)
    )
    column_G = shift_G + torch.arange(len(order_G), device=order_G.device)
    return torch.empty_like(order_G).scatter_(0, order_G, column_G)


def _encoded(
    items: _Items, id_N: Tensor, source_G: Tensor, is_row_N: Tensor, size: int, rank: int
) -> tuple[Tensor, Tensor]:
    """(encoded_U, place_S of each needed bag among them) of this rank: all rows' own candidates,
    and what it sends. At least one, so that every rank encodes something."""
    needed_N = is_row_N.index_fill(0, source_G, True)
    own = slice(rank * size, (rank + 1) * size)
    bag_L = (needed_N[own] & (id_N[own] >= 0)).nonzero().view(-1)
    place_S = torch.zeros_like(id_N[own])
    if not len(bag_L):
        return bag_L.new_zeros(1), place_S
    number_L = items.number_N[own].index_select(0, bag_L)
    place_I = torch.zeros_like(items.number_N).index_fill_(0, number_L, 1).cumsum(0) - 1
    place_L = place_I.index_select(0, number_L)
    place_S.scatter_(0, bag_L, place_L)
    encoded_U = bag_L.new_full((int(place_I[-1]) + 1,), size)
    return encoded_U.scatter_reduce(0, place_L, bag_L, "amin"), place_S


def _entries(side_NK: Tensor, column_N: Tensor, kept_N: Tensor) -> Entries:
    id_N, count_N, user_N, feedback_N, _ = side_NK.unbind(dim=1)
    none_N = (feedback_N < 0) | (id_N < 0)
    return Entries(
        user_P=user_N.masked_fill(none_N, -1)[kept_N],
        id_P=id_N.masked_fill(none_N, -1)[kept_N],
        count_P=count_N[kept_N],
        column_P=column_N.masked_fill(none_N, -1)[kept_N],
        weight_P=weights_of(side_NK)[kept_N],
    )
