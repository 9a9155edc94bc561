"""The order of rows in an epoch, and the place reached in it: independent of the number of ranks.

Row groups of all files are permuted by (seed, epoch); consecutive groups make windows of about
`window_rows` rows; rows are permuted inside a window by (seed, epoch, window). That defines a
total order 0..N-1. Where rows are read as sequences, those of a sequence stay together, in time
order. Each rank reads equal contiguous ranges ("streams") of it:

    order     |-------- stream 0 --------|-------- stream 1 --------| ... stream L-1 --------|
    batch t    t-th slice of stream 0      t-th slice of stream 1      ...
    ranks      rank r serves the streams r*L/W .. (r+1)*L/W - 1

so the batches of W ranks, put one after the other, are the batch of one rank with W times the rows.

Shapes: G = row groups, W = windows of an epoch.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.base.mistake import Mistake
from trainer.data.jagged import take_ranges

DEFAULT_STREAMS = 8
"""1, 2, 4 and 8 workers see the same global batches; other numbers take a common multiple."""

Range = tuple[int, int]
"""Half-open range of positions in the total order."""


def _permutation(size: int, *key: int) -> np.ndarray:
    """A permutation of 0..size-1 drawn from `key` alone.

    RandomState is the generator numpy has frozen for good: a checkpoint made under one numpy
    goes on with the same order under another.
    """
    bits = np.random.MT19937(np.random.SeedSequence(key))
    return np.random.RandomState(bits).permutation(size)


@dataclass(frozen=True)
class Segment:
    """Rows `start`..`stop` of the permuted window `window`."""

    window: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


class EpochOrder:
    """The total order of one epoch.

    group_rows: rows of each row group that take part (int64 [G]); a group may have none.
    first_group: number of the first of them among all groups of the data.
    """

    def __init__(
        self,
        group_rows: np.ndarray,
        *,
        seed: int,
        epoch: int,
        window_rows: int,
        first_group: int = 0,
    ) -> None:
        self.epoch = epoch
        self._first_group = first_group
        self._key = (seed, epoch)
        self._groups = _permutation(len(group_rows), seed, epoch)
        rows = np.asarray(group_rows, dtype=np.int64)[self._groups]
        group_start = np.cumsum(rows) - rows
        first_W = np.unique(group_start // window_rows, return_index=True)[1]
        self._first_group_W = np.append(first_W, len(rows))
        self.num_rows = int(rows.sum())
        self.window_start_W = np.append(group_start[first_W], self.num_rows)
        self._starts: list[int] = self.window_start_W.tolist()

    @property
    def num_windows(self) -> int:
        return len(self.window_start_W) - 1

    def groups(self, window: int) -> np.ndarray:
        """The row groups of a window, in the order they are put one after the other."""
        first, stop = self._first_group_W[window : window + 2].tolist()
        groups: np.ndarray = self._groups[first:stop] + self._first_group
        return groups

    def window_rows(self, window: int) -> int:
        return int(self.window_start_W[window + 1] - self.window_start_W[window])

    def permutation(self, window: int) -> np.ndarray:
        """Place in the order -> row of the window's concatenated groups (int64 [rows])."""
        return _permutation(self.window_rows(window), *self._key, window)

    def permutation_of(self, window: int, is_first_n: np.ndarray) -> np.ndarray:
        """The same where some rows stay together: each group begins where `is_first_n` is true."""
        first_g = np.flatnonzero(is_first_n)
        stop_g = np.append(first_g[1:], len(is_first_n))
        order_g = _permutation(len(first_g), *self._key, window)
        rows_n = np.arange(len(is_first_n))
        return take_ranges(rows_n, first_g[order_g], stop_g[order_g]).values

    def segments(self, start: int, stop: int) -> list[Segment]:
        """The pieces of windows that make up positions `start`..`stop`."""
        assert 0 <= start <= stop <= self.num_rows, (start, stop, self.num_rows)
        pieces = []
        while start < stop:
            window = bisect_right(self._starts, start) - 1
            begin = self._starts[window]
            end = min(stop, self._starts[window + 1])
            pieces.append(Segment(window, start - begin, end - begin))
            start = end
        return pieces


@dataclass(frozen=True)
class Position:
    """The place in the data after some step: what of the epoch's order each stream has left.

    step counts the global batches taken from this epoch. Independent of the number of ranks.
    """

    epoch: int
    step: int
    streams: tuple[tuple[Range, ...], ...]

    @classmethod
    def start(cls, epoch: int, num_rows: int, streams: int) -> "Position":
        """The start of an epoch: equal contiguous ranges of 0..num_rows."""
        return cls(epoch, 0, _deal([(0, num_rows)], streams))

    @property
    def rows_left(self) -> int:
        return sum(map(_rows, self.streams))

    def steps_left(self, rows_per_stream: int) -> int:
        """Steps until the longest stream is empty."""
        return max(math.ceil(_rows(ranges) / rows_per_stream) for ranges in self.streams)

    def dealt_to(self, streams: int) -> "Position":
        """The same rows left, for another number of streams: ranges joined and cut anew."""
        if streams == len(self.streams):
            return self
        joined = [piece for ranges in self.streams for piece in ranges]
        return Position(self.epoch, self.step, _deal(joined, streams))

    def take(self, rows_per_stream: int) -> tuple["Position", list[tuple[Range, ...]]]:
        """The position one step on, and the ranges that step takes from each stream."""
        taken, left = [], []
        for ranges in self.streams:
            head, tail = _split(ranges, rows_per_stream)
            taken.append(head)
            left.append(tail)
        return Position(self.epoch, self.step + 1, tuple(left)), taken

    def to_json(self) -> dict[str, Any]:
        streams = [[list(piece) for piece in ranges] for ranges in self.streams]
        return {"epoch": self.epoch, "step": self.step, "streams": streams}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Position":
        streams = tuple(tuple((int(a), int(b)) for a, b in ranges) for ranges in value["streams"])
        return cls(int(value["epoch"]), int(value["step"]), streams)


def default_streams(local_batch_size: int, world_size: int) -> int:
    """lcm(8, world_size) where the batch divides so, else the nearest smaller multiple.

    For 1, 2, 4 and 8 ranks it depends on the global batch alone.
    """
    share = DEFAULT_STREAMS // math.gcd(DEFAULT_STREAMS, world_size)
    return world_size * math.gcd(local_batch_size, share)


def chosen_streams(streams: int | None, local_batch_size: int, world_size: int) -> int:
    """`streams`, checked; None: the usual number."""
    usual = default_streams(local_batch_size, world_size)
    if streams is None:
        return usual
    rows = local_batch_size * world_size
    if streams < 1 or streams % world_size or rows % streams:
        raise Mistake(
            f"streams = {streams} must be a multiple of the {world_size} ranks and divide "
            f"the global batch of {rows} rows: take {usual}"
        )
    return streams


def _rows(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _split(ranges: Sequence[Range], rows: int) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Cut a list of ranges after its first `rows` rows."""
    head: list[Range] = []
    for index, (start, stop) in enumerate(ranges):
        if stop - start > rows:
            if rows > 0:
                head.append((start, start + rows))
            return tuple(head), ((start + rows, stop), *ranges[index + 1 :])
        head.append((start, stop))
        rows -= stop - start
    return tuple(head), ()


def _deal(ranges: Sequence[Range], streams: int) -> tuple[tuple[Range, ...], ...]:
    """Cut ranges into `streams` lists whose row counts differ by at most one."""
    total = _rows(ranges)
    dealt = []
    rest = tuple(piece for piece in ranges if piece[1] > piece[0])
    for stream in range(streams):
        share = total * (stream + 1) // streams - total * stream // streams
        head, rest = _split(rest, share)
        dealt.append(head)
    return tuple(dealt)
