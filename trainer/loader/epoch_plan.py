"""Which rows each step of one rank takes, known to every rank without communication.

Shapes: L = streams of all ranks, b = rows that a step takes from each stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.loader.order import EpochOrder, Position, Range, Segment

NEARBY_STEPS = 16
"""Uses of one window with fewer steps between them share one reading."""


@dataclass(frozen=True)
class Step:
    """One step of one rank."""

    order: EpochOrder
    number: int
    """Number in the epoch, from 0."""
    index: int
    """Number in the run, from 0."""
    pieces: list[tuple[int, Segment]]
    """First row in the local batch, and where its rows come from."""
    global_rows: int
    """Rows of the data that all ranks take together."""
    position: Position
    """Where the data goes on afterwards."""


@dataclass(frozen=True)
class WindowUse:
    """A window that the rank needs for its steps first..last (numbers in the run)."""

    order: EpochOrder
    window: int
    first: int
    last: int


@dataclass(frozen=True)
class EpochPlan:
    """What is left of an epoch, for one rank.

    first_index: number in the run of its first step. local_streams: those the rank serves.
    next_rows: rows of the epoch after it.
    """

    order: EpochOrder
    start: Position
    first_index: int
    local_streams: range
    rows_per_stream: int
    next_rows: int

    @property
    def num_steps(self) -> int:
        return self.start.steps_left(self.rows_per_stream)

    def uses(self) -> list[WindowUse]:
        """The windows of the rank's streams by first step."""
        found: dict[int, list[WindowUse]] = {}
        for stream in self.local_streams:
            for use in self._uses_of(self.start.streams[stream]):
                found.setdefault(use.window, []).append(use)
        merged = [use for uses in found.values() for use in _merge(uses)]
        return sorted(merged, key=lambda use: use.first)

    def _uses_of(self, ranges: tuple[Range, ...]) -> Iterator[WindowUse]:
        row = 0
        for start, stop in ranges:
            for segment in self.order.segments(start, stop):
                first = self.first_index + row // self.rows_per_stream
                row += segment.rows
                last = self.first_index + (row - 1) // self.rows_per_stream
                yield WindowUse(self.order, segment.window, first, last)

    def steps(self) -> Iterator[Step]:
        """All steps left; the position after the last is the start of the next epoch."""
        position = self.start
        for step in range(self.num_steps):
            number = position.step
            position, taken = position.take(self.rows_per_stream)
            global_rows = sum(stop - start for ranges in taken for start, stop in ranges)
            if position.rows_left == 0:
                streams = len(position.streams)
                position = Position.start(position.epoch + 1, self.next_rows, streams)
            pieces = self._pieces(taken)
            index = self.first_index + step
            yield Step(self.order, number, index, pieces, global_rows, position)

    def _pieces(self, taken: list[tuple[Range, ...]]) -> list[tuple[int, Segment]]:
        pieces = []
        for slot, stream in enumerate(self.local_streams):
            row = slot * self.rows_per_stream
            for start, stop in taken[stream]:
                for segment in self.order.segments(start, stop):
                    pieces.append((row, segment))
                    row += segment.rows
        return pieces


def _merge(uses: list[WindowUse]) -> list[WindowUse]:
    """Join uses of one window that lie close together."""
    merged: list[WindowUse] = []
    for use in sorted(uses, key=lambda use: use.first):
        if merged and use.first - merged[-1].last < NEARBY_STEPS:
            last = max(use.last, merged[-1].last)
            merged[-1] = WindowUse(use.order, use.window, merged[-1].first, last)
        else:
            merged.append(use)
    return merged
