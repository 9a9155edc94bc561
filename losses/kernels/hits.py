"""Which (row, column) pairs of the score matrix are masked, found without comparing all B x C
pairs.

Columns are sorted once per block by key (item id, or user id); the values a row must not meet are
found in the sorted block by binary search. Hits are few, so writing -inf at their places costs far
less than a dense mask.

Shapes: V (row, value) entries of a rule, L values that rows share, R rows of a stripe, N blocks, W
columns of a block.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_PAST_ALL_KEYS = torch.iinfo(torch.int64).max
_MATCHES_NOTHING = -2  # keys are >= -1
_PAIRS_AT_ONCE = 1 << 19  # 4 MiB of int64 for each of a few temporaries


class Entries(NamedTuple):
    """Values that rows must not meet, row after row: as many entries as rows have values."""

    value_V: Tensor
    row_V: Tensor
    first_of_row: Tensor
    """int64 B + 1, on the host: row b owns entries first[b]:first[b + 1]."""


@dataclass(frozen=True)
class RowValues:
    """The values of every row; rows may share them."""

    value_L: Tensor
    first_B: Tensor
    last_B: Tensor
    """Row b has value_L[first_B[b]:last_B[b]]; values below 0 match nothing."""
    spared_B: Tensor | None = None
    """A value of each row that another rule sees to: no entry is made of it."""
    one_each: bool = False
    """Whether row b has value b and no other."""

    @staticmethod
    def one_a_row(value_B: Tensor) -> "RowValues":
        """Row b has `value_B[b]`."""
        place_B = torch.arange(value_B.shape[0], device=value_B.device)
        return RowValues(_matching(value_B), place_B, place_B + 1, one_each=True)

    @staticmethod
    def lists(value_L: Tensor, offsets: Tensor) -> "RowValues":
        """Row b has `value_L[offsets[b]:offsets[b + 1]]`."""
        return RowValues(_matching(value_L), offsets[:-1], offsets[1:])

    @staticmethod
    def of_groups(
        group_P: Tensor, value_P: Tensor, group_B: Tensor, spared_B: Tensor
    ) -> "RowValues":
        """Row b has the values of all pairs with group_P == group_B[b], groups below 0 aside."""
        group_P, order_P = torch.sort(group_P, stable=True)
        wanted_B = _matching(group_B)
        first_B = torch.searchsorted(group_P, wanted_B)
        last_B = torch.searchsorted(group_P, wanted_B, right=True)
        return RowValues(_matching(value_P[order_P]), first_B, last_B, spared_B)

    @cached_property
    def entries(self) -> Entries:
        """Each row's values written out; device-to-host syncs on CUDA unless `one_each`."""
        num_rows, device = self.first_B.shape[0], self.first_B.device
        row_B = torch.arange(num_rows, device=device)
        if self.one_each:
            return Entries(self.value_L, row_B, torch.arange(num_rows + 1))
        length_B = self.last_B - self.first_B
        row_V = torch.repeat_interleave(row_B, length_B)  # sync
        before_B = length_B.cumsum(0) - length_B
        place_V = torch.arange(row_V.shape[0], device=device) + (self.first_B - before_B)[row_V]
        value_V = self.value_L[place_V]
        if self.spared_B is not None:
            kept_V = value_V != self.spared_B[row_V]
            value_V, row_V = value_V[kept_V], row_V[kept_V]  # sync
            length_B = torch.bincount(row_V, minlength=num_rows)
        first = F.pad(length_B.cumsum(0), (1, 0)).cpu()  # sync
        return Entries(value_V, row_V, first)


def _matching(value_X: Tensor) -> Tensor:
    return torch.where(value_X < 0, _MATCHES_NOTHING, value_X)


@dataclass(frozen=True)
class MaskRule:
    """Columns whose key is among a row's values leave the row."""

    key_C: Tensor
    values: RowValues


class SortedColumns:
    """A rule with its columns sorted inside every block of W columns."""

    def __init__(self, rule: MaskRule, block_columns: int) -> None:
        self.rule = rule
        self.block_columns = block_columns
        num_blocks = -(-rule.key_C.shape[0] // block_columns)
        padded = rule.key_C.new_full((num_blocks * block_columns,), _PAST_ALL_KEYS)
        padded[: rule.key_C.shape[0]] = rule.key_C
        self.key_NW, self.column_NW = torch.sort(
            padded.view(num_blocks, block_columns), dim=1, stable=True
        )

    def find(self, rows: slice) -> "FoundHits":
        """Hits of a stripe of rows in all blocks, as ranges of the sorted columns."""
        entries = self.rule.values.entries
        first, last = (int(entries.first_of_row[row]) for row in (rows.start, rows.stop))
        value_V = entries.value_V[first:last]
        row_V = entries.row_V[first:last] - rows.start
        first_NV, count_NV = self.ranges(value_V)
        return FoundHits(self, row_V, first_NV, count_NV)

    def ranges(self, value_V: Tensor) -> tuple[Tensor, Tensor]:
        """(first, number) [N, V] of the sorted places of every value in every block."""
        value_NV = value_V.expand(self.key_NW.shape[0], -1).contiguous()
        first_NV = torch.searchsorted(self.key_NW, value_NV)
        return first_NV, torch.searchsorted(self.key_NW, value_NV, right=True) - first_NV


class FoundHits:
    """Hits of one rule in one stripe; places are written out for a few blocks at a time."""

    def __init__(
        self, columns: SortedColumns, row_V: Tensor, first_NV: Tensor, count_NV: Tensor
    ) -> None:
        width = columns.block_columns
        block_N1 = torch.arange(first_NV.shape[0], device=row_V.device)[:, None]
        self._sorted_columns = columns.column_NW.view(-1)
        self._first_NV = first_NV + block_N1 * width
        self._row_place_NV = (row_V * width).expand_as(first_NV)
        self._row_V = row_V
        self.count_NV = count_NV
        self.total_N: list[int] = count_NV.sum(dim=1).tolist()  # device-to-host sync on CUDA
        self._cached: dict[int, Tensor] = {}

    def count_by_row(self, num_rows: int) -> Tensor:
        """[R] hits of every row, int64."""
        return self.count_NV.new_zeros(num_rows).index_add_(
            0, self._row_V, self.count_NV.sum(dim=0)
        )

    def places(self, block: int) -> Tensor:
        """Positions row * W + column of one block's hits, int64. Blocks are asked in order."""
        if block not in self._cached:
            last = block + 1
            pairs = self.total_N[block]
            while last < len(self.total_N) and pairs + self.total_N[last] <= _PAIRS_AT_ONCE:
                pairs += self.total_N[last]
                last += 1
            parts = self._write_out(block, last, pairs).split(self.total_N[block:last])
            self._cached = dict(enumerate(parts, start=block))
        return self._cached[block]

    def _write_out(self, first_block: int, last_block: int, pairs: int) -> Tensor:
        count_K = self.count_NV[first_block:last_block].reshape(-1)
        before_K = count_K.cumsum(0) - count_K
        start_K = self._first_NV[first_block:last_block].reshape(-1) - before_K
        entry_P = torch.repeat_interleave(count_K, output_size=pairs)
        sorted_place_P = start_K.index_select(0, entry_P).add_(
            torch.arange(pairs, device=count_K.device)
        )
        row_place_K = self._row_place_NV[first_block:last_block].reshape(-1)
        place_P = row_place_K.index_select(0, entry_P)
        return place_P.add_(self._sorted_columns.index_select(0, sorted_place_P))


class StripeHits:
    """Hits of one stripe of rows under all rules; each (row, column) pair counted once, as many
    as the column's copies."""

    def __init__(
        self, sorted_columns: list[SortedColumns], rows: slice, copies_C: Tensor | None
    ) -> None:
        self._found = [each.find(rows) for each in sorted_columns]
        self._num_rows = rows.stop - rows.start
        self._width = sorted_columns[0].block_columns
        # One value a row and distinct columns: a single such rule cannot name a pair twice.
        self._may_repeat = not (len(sorted_columns) == 1 and sorted_columns[0].rule.values.one_each)
        self._copies_C = copies_C
        if copies_C is not None:
            self.count_R = copies_C.new_zeros(self._num_rows)
        elif self._may_repeat:
            self.count_R = self._found[0].count_NV.new_zeros(self._num_rows)
        else:
            self.count_R = self._found[0].count_by_row(self._num_rows)
        """[R] distinct hits; complete once all blocks have been asked for."""

    def places(self, block: int, block_columns: int) -> Tensor | None:
        """Positions row * `block_columns` + column in one block, none twice; None without."""
        parts = [found.places(block) for found in self._found if found.total_N[block]]
        if not parts:
            return None
        place_P = parts[0]
        if self._may_repeat:
            place_P = torch.unique(torch.cat(parts))
        if self._copies_C is not None:
            row_P = torch.div(place_P, self._width, rounding_mode="floor")
            column_P = place_P + (block - row_P) * self._width
            self.count_R.index_add_(0, row_P, self._copies_C[column_P])
        elif self._may_repeat:
            row_P = torch.div(place_P, self._width, rounding_mode="floor")
            self.count_R += torch.bincount(row_P, minlength=self._num_rows)
        if block_columns != self._width:  # places are laid out for full blocks
            row_P = torch.div(place_P, self._width, rounding_mode="floor")
            place_P = place_P - row_P * (self._width - block_columns)
        return place_P
