"""Batches of one rank out of a prepared dataset, in an order that no number of ranks changes.

    loader = Loader(Dataset.load("DATA"), query_keys=("user", "history"),
                    candidate_keys=("item", "item.genre"), local_batch_size=1024,
                    rank=rank, world_size=world_size, seed=1)
    for batch in loader:            # endless: epoch after epoch
        train(batch)
        checkpoint["data"] = batch.position

No collective runs here: every rank computes the same plan from the files' row counts alone.

Shapes: B = rows of this rank in a step, E = extra candidates of this rank, S = B + E,
L = streams, b = rows that a step takes from each stream (global batch / L).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count, tee
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.base.freed_memory import keep_freed_memory
from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.data.candidates import CandidateSampler, Distribution
from trainer.data.feature_bags import LIST_KEYS, list_of, side_of
from trainer.data.features import FeatureStore, count_column
from trainer.data.neighbours import NeighbourRule
from trainer.data.schema import Dataset
from trainer.loader.assemble import Assembler, Piece, Window
from trainer.loader.batch import Batch
from trainer.loader.epoch_plan import EpochPlan, Step
from trainer.loader.order import EpochOrder, Position, default_streams
from trainer.loader.prefetch import BatchStream, WindowCache
from trainer.loader.sequence_batches import SequenceReading
from trainer.loader.windows import RowGroups, WindowRows

DEFAULT_WINDOW_ROWS = 1 << 18
READER_THREADS = min(4, usable_cpus())
"""They decode and look up: five sixths of the work. The thread that builds batches mostly waits."""


class Loader:
    """Iterates over batches: `iter(loader)` from `position` on without end, `epoch(e)` once.

    dataset: a prepared dataset, or its folder or URI.
    splits: whose events, for example ("train",) or ("train", "validation").
    query_keys, candidate_keys: feature keys in the order of `Batch.features`.
    dense_keys: keys of numbers and vectors, for `Batch.dense`.
    local_batch_size: rows B of this rank in every step; the same on all ranks.
    streams: ranges the order is cut into; a multiple of world_size that divides the global
        batch. Loaders with equal streams and equal global batches see equal global batches.
    shuffle_window_rows: rows that are shuffled among each other; row groups are shuffled first.
    extra_candidates: items drawn from the catalog in every step, over all ranks together. Where
        they do not divide by the ranks, the last are filled up with padding.
    feedback: "positive" leaves disliked rows out; "all" gives them with feedback -1.
    history_length: longest `history` and `disliked`; None: as the dataset says.
    sequences: rows are positions of sequences, the last query key (sequence_batches.py).
    position: `Batch.position` of a checkpoint, made by any number of ranks.
    neighbours: the rule of the keys "user_items" and "item_users", where they are asked for.
    skip_corrupt: count the rows of damaged row groups and go on; they come as padding, while
        `global_weight` still counts them.
    """

    def __init__(
        self,
        dataset: Dataset | str | Path,
        *,
        splits: Sequence[str] = ("train",),
        query_keys: Sequence[str] = ("user", "history"),
        candidate_keys: Sequence[str] = ("item",),
        dense_keys: Sequence[str] = (),
        local_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        streams: int | None = None,
        shuffle_window_rows: int = DEFAULT_WINDOW_ROWS,
        extra_candidates: int = 0,
        extra_distribution: Distribution = "uniform",
        feedback: Literal["positive", "all"] = "positive",
        history_length: int | None = None,
        position: dict[str, Any] | None = None,
        skip_corrupt: bool = False,
        batches_ahead: int = 4,
        pin_memory: bool = False,
        neighbours: NeighbourRule | None = None,
        sequences: SequenceReading | None = None,
    ) -> None:
        self.dataset = dataset if isinstance(dataset, Dataset) else Dataset.load(dataset)
        self.local_batch_size = local_batch_size
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._window_rows = shuffle_window_rows
        self._sampled = extra_candidates
        self._extra = -(-extra_candidates // world_size)
        self._history_length, self._sequences = history_length, sequences
        self._batches_ahead, self._pin_memory = batches_ahead, pin_memory
        self.query_keys, self.candidate_keys = tuple(query_keys), tuple(candidate_keys)
        self.dense_keys = tuple(dense_keys)
        self._check_arguments()
        keep_freed_memory()
        self._streams = self._choose_streams(streams)
        self._rows_per_stream = world_size * local_batch_size // self._streams
        self._groups = self._open(tuple(splits), feedback, skip_corrupt)
        self.num_rows = int(self._groups.rows_G.sum())
        """Rows of the data in an epoch, over all ranks."""
        if self.num_rows == 0:
            raise Mistake(f"{', '.join(splits)} of {self.dataset.path} have no {feedback} rows")
        self._fingerprint = {
            "seed": seed,
            "splits": list(splits),
            "feedback": feedback,
            "shuffle_window_rows": shuffle_window_rows,
            "rows": self.num_rows,
            "row_groups": len(self._groups.rows_G),
            **({} if sequences is None else {"sequence_length": sequences.length}),
        }
        keys = (*query_keys, *candidate_keys, *dense_keys)
        self.store = FeatureStore(self.dataset, keys, neighbours, count_column(splits))
        self._sampler = (
            CandidateSampler(self.store.item_count_I, extra_distribution, seed)
            if extra_candidates
            else None
        )
        read = (self.store, self.query_keys, self.candidate_keys, seed, self.dense_keys)
        self._assembler = Assembler(*read, self.dataset.is_weighted, sequences)
        self._padding = self._assembler.join(
            WindowRows.missing(local_batch_size, self._list_keys, self._context_keys)
        )
        self.position = self._start(0) if position is None else self._restore(position)
        """Where `iter(loader)` begins."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch, equal on all ranks; the last may hold padding."""
        return self._start(0).steps_left(self._rows_per_stream)

    def steps_left(self, epochs: int) -> int:
        """Steps from `position` to the end of a run of `epochs` epochs, equal on all ranks."""
        if self.position.epoch >= epochs:
            return 0
        here = self.position.steps_left(self._rows_per_stream)
        return here + (epochs - 1 - self.position.epoch) * self.steps_per_epoch

    @property
    def skipped_rows(self) -> int:
        """Rows of this rank lost to corrupt row groups so far (with skip_corrupt)."""
        return self._groups.skipped_rows

    def __iter__(self) -> BatchStream:
        """Batches from `position` on, epoch after epoch without end."""
        later = (self._start(epoch) for epoch in count(self.position.epoch + 1))
        return self._stream(chain([self.position], later))

    def epoch(self, epoch: int) -> BatchStream:
        """The batches of one epoch: from `position` on if that lies in it, else all."""
        inside = self.position.epoch == epoch
        return self._stream(iter([self.position if inside else self._start(epoch)]))

    def _stream(self, starts: Iterator[Position]) -> BatchStream:
        return BatchStream(self._batches(starts), self._batches_ahead)

    def _batches(self, starts: Iterator[Position]) -> Iterator[Batch]:
        """Runs in the background thread of a stream."""
        plans, plans_ahead = tee(self._plans(starts))
        uses = chain.from_iterable(plan.uses() for plan in plans_ahead)
        local_streams = self._streams // self._world_size
        with ThreadPoolExecutor(READER_THREADS, "tandem-reader") as pool:
            windows = WindowCache(pool, self._read, uses, ahead=local_streams + 1)
            try:
                for step in chain.from_iterable(plan.steps() for plan in plans):
                    windows.advance(step.index)
                    batch = self._build(step, windows)
                    yield batch.pin_memory() if self._pin_memory else batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _plans(self, starts: Iterator[Position]) -> Iterator[EpochPlan]:
        local = self._streams // self._world_size
        streams = range(self._rank * local, (self._rank + 1) * local)
        first_index = 0
        for start in starts:
            order = EpochOrder(
                self._groups.rows_G,
                seed=self._seed,
                epoch=start.epoch,
                window_rows=self._window_rows,
            )
            plan = EpochPlan(order, start, first_index, streams, self._rows_per_stream)
            yield plan
            first_index += plan.num_steps

    def _read(self, order: EpochOrder, number: int) -> Window:
        """Runs on the readers' threads."""
        return self._assembler.join(self._groups.window(order, number, self._seed))

    def _build(self, step: Step, windows: WindowCache) -> Batch:
        epoch, extra = step.order.epoch, self._extra
        pieces, filled = [], 0
        for row, segment in step.pieces:
            if row > filled:
                pieces.append(Piece(self._padding, 0, row - filled))
            window = windows.get(epoch, segment.window)
            pieces.append(Piece(window, segment.start, segment.stop))
            filled = row + segment.rows
        if filled < self.local_batch_size:
            pieces.append(Piece(self._padding, 0, self.local_batch_size - filled))
        extra_item_E = np.empty(0, dtype=np.int64)
        if self._sampler is not None:
            start = self._rank * extra
            extra_item_E = self._sampler.draw(epoch, step.number, start, start + extra)
            extra_item_E[max(0, self._sampled - start) :] = -1
        position = {**step.position.to_json(), "order": self._fingerprint}
        return self._assembler.batch(step, pieces, extra_item_E, position)

    def _start(self, epoch: int) -> Position:
        return Position.start(epoch, self.num_rows, self._streams)

    def _restore(self, position: dict[str, Any]) -> Position:
        made = position["order"]
        for name, value in self._fingerprint.items():
            if made.get(name) != value:
                raise Mistake(
                    f"the checkpoint's place in the data was taken with {name} = {made.get(name)}, "
                    f"now it is {value}: the rows have another order. Resume with the same "
                    "data and settings, or start a new epoch without the position."
                )
        here = Position.from_json(position)
        ranges = [piece for stream in here.streams for piece in stream]
        if not all(0 <= start <= stop <= self.num_rows for start, stop in ranges):
            raise Mistake(
                f"the checkpoint's place in the data has rows outside 0..{self.num_rows}: it was "
                "not made by this run"
            )
        return here.dealt_to(self._streams)

    def _open(self, splits: tuple[str, ...], feedback: str, skip_corrupt: bool) -> RowGroups:
        for split in splits:
            if split not in self.dataset.splits:
                known = ", ".join(self.dataset.splits)
                raise Mistake(f"no split {split!r} in {self.dataset.path}: it has {known}")
        return RowGroups(
            self.dataset,
            splits,
            self._list_keys,
            self._context_keys,
            positives_only=feedback == "positive",
            history_length=self._history_length,
            skip_corrupt=skip_corrupt,
            sequence_length=None if self._sequences is None else self._sequences.length,
        )

    @property
    def _list_keys(self) -> tuple[str, ...]:
        used = {list_of(key) for key in self.query_keys}
        return tuple(name for name in LIST_KEYS if name in used)

    @property
    def _context_keys(self) -> tuple[str, ...]:
        keys = (*self.query_keys, *self.dense_keys)
        return tuple(key for key in keys if key.startswith("context."))

    def _choose_streams(self, streams: int | None) -> int:
        world_size, rows = self._world_size, self.local_batch_size
        if streams is None:
            return default_streams(rows, world_size)
        if streams < 1 or streams % world_size or rows * world_size % streams:
            raise Mistake(
                f"streams = {streams} must be a multiple of the {world_size} ranks and divide "
                f"the global batch of {rows * world_size} rows: take "
                f"{default_streams(rows, world_size)}"
            )
        return streams

    def _check_arguments(self) -> None:
        for name, value, least in (
            ("local_batch_size", self.local_batch_size, 1),
            ("shuffle_window_rows", self._window_rows, 1),
            ("extra_candidates", self._sampled, 0),
        ):
            if value < least:
                raise Mistake(f"{name} is {value}: take {least} or more")
        if not 0 <= self._rank < self._world_size:
            raise Mistake(f"rank {self._rank} is outside 0..{self._world_size - 1}")
        if self._history_length is not None and self._history_length < 1:
            raise Mistake(
                f"history_length is {self._history_length}: take 1 or more, "
                "or leave history out of the query keys"
            )
        for keys, side in ((self.query_keys, "query"), (self.candidate_keys, "candidate")):
            for key in keys:
                if side_of(key) != side:
                    raise Mistake(f"feature key {key!r} is no {side} key")
        if "disliked" in self._list_keys and not self.dataset.has_feedback:
            raise Mistake(
                f"{self.dataset.path} was prepared without ratings, so it has no disliked items: "
                "leave the key disliked out"
            )
