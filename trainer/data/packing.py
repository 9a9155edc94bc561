"""Sequences of items packed for a causal model: a token an item, each distinct item looked up once.

    sequences, longest first        blocks                              tokens
      start  7  3  9                start  7  3  9 | start  4  7  .  |    start  2 | start  5
      start  4  7                   ------ 2 x 4 ------------------- |    - 2 x 2 ----------
      start  2  ;  start  5

A sequence is a start and its items, oldest first. Those of about one length make a block, a matrix
of tokens that attention takes at once: a sequence is at most an eighth shorter than its block, and
what is missing at its end no token before it sees.

Shapes: M sequences, N tokens, D distinct items, B rows, V items of all sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.events.marks import items_of, marks_of
from trainer.data.jagged import Jagged, offsets_of, take_ranges

SHORTEST_SHARE = 7 / 8
"""Of a block's length, that a sequence in it has at least."""


@dataclass(frozen=True)
class Packed:
    """Sequences of some rows' users. All int64."""

    item_D: Tensor
    """Distinct items, ascending."""
    place_N: Tensor
    """Of each token's item among them; -1: a start, or nothing."""
    position_N: Tensor
    """Place in the sequence: 0 the start, 1 the first item."""
    start_M: Tensor
    """Token of each sequence's start; those of a block lie in it in order."""
    row_M: Tensor
    """A row of the sequence's user."""
    query_B: Tensor
    """The last token that each row sees: that before its own item, in time."""
    blocks: tuple[tuple[int, int], ...]
    """(sequences, tokens of each) of the blocks, which lie end to end."""
    mark_N: Tensor | None = None
    """Kind and gap of each token's item (data/events/marks.py), where they are read; 0: none."""
    history_values: Tensor | None = None
    """Items that rows see, row after row, where they were asked for."""
    history_offsets: Tensor | None = None
    """[B + 1]."""

    def with_targets(self, number: int) -> Packed:
        """Each row as often as positions predict its item: of the last token that it sees, of the
        one before that, and so on, `number` times B rows; where there is none, the start's."""
        start_B = self.start_of_rows()
        back_nB = torch.arange(number, device=start_B.device).unsqueeze(1)
        token_nB = torch.maximum(self.query_B - back_nB, start_B)
        return replace(self, query_B=token_nB.flatten())

    def share_of_targets(self, number: int) -> Tensor:
        """What each of those counts of its row, float32 [number x B]: all alike that there are."""
        before_B = self.query_B - self.start_of_rows()
        back_nB = torch.arange(number, device=before_B.device).unsqueeze(1)
        there_B = (before_B + 1).clamp(max=number)
        return ((back_nB < there_B) / there_B).flatten()

    def start_of_rows(self) -> Tensor:
        """Token of the start of each row's sequence, int64 [B]."""
        start_M = self.start_M.sort().values
        return start_M[torch.searchsorted(start_M, self.query_B, right=True) - 1]

    def moved(self, move: Callable[[Tensor], Tensor]) -> Packed:
        """Every tensor by `move`: to a device, or into page-locked memory."""
        tensors: dict[str, Any] = {
            name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def pack(
    sequences: Jagged,
    row_M: np.ndarray,
    sequence_B: np.ndarray,
    seen_B: np.ndarray,
    with_histories: bool = False,
    with_marks: bool = False,
) -> Packed:
    """Lay sequences out in blocks.

    Args:
        sequences: items of each, oldest first, marked or not.
        row_M: a row of each sequence's user.
        sequence_B: the sequence that each row sees.
        seen_B: how many of its items, from the first on.
        with_histories: say of each row which items these are.
        with_marks: say what is marked of each token's item.
    """
    offsets_M = sequences.offsets - sequences.offsets[0]
    items_M = np.diff(offsets_M)
    order_M = np.argsort(-items_M, kind="stable")
    width_M, blocks = _blocks(items_M[order_M] + 1)
    start_M = np.empty_like(items_M)
    start_M[order_M] = np.cumsum(width_M) - width_M
    code_V = sequences.values[sequences.offsets[0] : sequences.offsets[-1]]
    values_V = items_of(code_V)
    place_in_V = np.arange(1, len(values_V) + 1) - np.repeat(offsets_M[:-1], items_M)
    token_V = np.repeat(start_M, items_M) + place_in_V
    item_D, place_V = np.unique(values_V, return_inverse=True)
    tokens = int(width_M.sum())
    place_N, position_N = np.full(tokens, -1, dtype=np.int64), np.zeros(tokens, dtype=np.int64)
    place_N[token_V] = place_V.reshape(-1)
    position_N[token_V] = place_in_V
    mark_N = np.zeros(tokens if with_marks else 0, dtype=np.int64)
    if with_marks:
        mark_N[token_V] = marks_of(code_V)
    packed = Packed(
        item_D=torch.from_numpy(item_D.astype(np.int64)),
        place_N=torch.from_numpy(place_N),
        position_N=torch.from_numpy(position_N),
        start_M=torch.from_numpy(start_M),
        row_M=torch.from_numpy(row_M),
        query_B=torch.from_numpy(start_M[sequence_B] + seen_B),
        blocks=blocks,
        mark_N=torch.from_numpy(mark_N) if with_marks else None,
    )
    if not with_histories:
        return packed
    first_B = sequences.offsets[:-1][sequence_B]
    histories = take_ranges(sequences.values, first_B, first_B + seen_B)
    return replace(
        packed,
        history_values=torch.from_numpy(items_of(histories.values).astype(np.int64)),
        history_offsets=torch.from_numpy(histories.offsets),
    )


def pack_lists(
    values_V: np.ndarray, lengths_n: np.ndarray, limit: int, with_marks: bool = False
) -> Packed:
    """A sequence a row, of the last `limit` items of each list; rows see all of it."""
    stop_n = np.cumsum(lengths_n)
    kept_n = np.minimum(lengths_n, limit)
    row_n = np.arange(len(lengths_n))
    kept = take_ranges(values_V, stop_n - kept_n, stop_n)
    return pack(kept, row_n, row_n, kept_n, with_marks=with_marks)


def full_sequences(rows: int, length: int, with_marks: bool = False) -> Packed:
    """Sequences of `length` items, a row each: what a batch is at most."""
    row_B = np.arange(rows)
    first_M = row_B[::length]
    sizes = np.diff(np.append(first_M, rows))
    sequences = Jagged(row_B, offsets_of(sizes))
    number_B = np.repeat(np.arange(len(sizes)), sizes)
    return pack(sequences, first_M, number_B, row_B % length + 1, with_marks=with_marks)


def _blocks(length_M: np.ndarray) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """(tokens that each sequence takes, blocks) of sequences by falling length."""
    lengths, counts = np.unique(length_M, return_counts=True)
    blocks: list[tuple[int, int]] = []
    for length, count in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        if blocks and length >= SHORTEST_SHARE * blocks[-1][1]:
            blocks[-1] = (blocks[-1][0] + count, blocks[-1][1])
        else:
            blocks.append((count, length))
    rows, widths = np.array(blocks, dtype=np.int64).reshape(-1, 2).T
    return np.repeat(widths, rows), tuple(blocks)
