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
from itertools import chain, tee
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.base.machine import keep_freed_memory, usable_cpus
from trainer.base.mistake import Mistake
from trainer.base.split_names import count_column
from trainer.data.candidates import Distribution
from trainer.data.feature_bags import LIST_KEYS, list_of
from trainer.data.features import FeatureStore
from trainer.data.schema import Dataset
from trainer.loader.arguments_checked import check_reading
from trainer.loader.assemble import Assembler, Piece, Window
from trainer.loader.batch import Batch
from trainer.loader.epoch_plan import EpochPlan, Step
from trainer.loader.epoch_rows import EpochRows, WindowSchedule
from trainer.loader.mined import MinedItems
from trainer.loader.order import EpochOrder, Position, chosen_streams
from trainer.loader.prefetch import BatchStream, WindowCache
from trainer.loader.row_table import WindowRows
from trainer.loader.sequence_batches import SequenceReading
from trainer.loader.windows import RowGroups

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
    skip_corrupt: count the rows of damaged row groups and go on; they come as padding, while
        `global_weight` still counts them.
    schedule: windows that are epochs, each of its own rows: `splits` is all of them then, and
        counts of items are those of the window.
    mined: negatives of users, of which each row takes some.
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
        sequences: SequenceReading | None = None,
        schedule: WindowSchedule | None = None,
        mined: MinedItems | None = None,
    ) -> None:
        self.dataset = dataset if isinstance(dataset, Dataset) else Dataset.load(dataset)
        self.local_batch_size = local_batch_size
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._window_rows = shuffle_window_rows
        self._sampled = extra_candidates
        self._extra = -(-extra_candidates // world_size)
        self._history_length, self._sequences = history_length, sequences
        self._batches_ahead, self._pin_memory, self._schedule = batches_ahead, pin_memory, schedule
        self.query_keys, self.candidate_keys = tuple(query_keys), tuple(candidate_keys)
        self.dense_keys = tuple(dense_keys)
        check_reading(
            self.dataset,
            {"query": self.query_keys, "candidate": self.candidate_keys},
            {
                "local_batch_size": (local_batch_size, 1),
                "shuffle_window_rows": (shuffle_window_rows, 1),
                "extra_candidates": (extra_candidates, 0),
            },
            history_length,
            (rank, world_size),
        )
        keep_freed_memory()
        self._streams = chosen_streams(streams, local_batch_size, world_size)
        self._rows_per_stream = world_size * local_batch_size // self._streams
        self._groups = self._open(tuple(splits), feedback, skip_corrupt)
        self.num_rows = int(self._groups.rows_G.sum())
        """Rows of the data, over all ranks: of an epoch, or of all windows."""
        if self.num_rows == 0 and schedule is None:
            raise Mistake(f"{', '.join(splits)} of {self.dataset.path} have no {feedback} rows")
        self._fingerprint = {
            "seed": seed,
            "splits": list(splits),
            "feedback": feedback,
            "shuffle_window_rows": shuffle_window_rows,
            **({} if sequences is None else {"sequence_length": sequences.length}),
        }
        keys = (*query_keys, *candidate_keys, *dense_keys)
        self.store = FeatureStore(self.dataset, keys, count_column(splits))
        self._law = extra_distribution
        self._epochs = EpochRows(self._groups.rows_G, self.store.item_count_I, schedule)
        read = (self.store, self.query_keys, self.candidate_keys, self.dense_keys)
        read_as = (self.dataset.is_weighted, sequences, self._epochs.counts, mined)
        self._assembler = Assembler(*read, *read_as)
        self._padding = self._assembler.join(
            WindowRows.missing(local_batch_size, self._list_keys, self._context_keys)
        )
        self.position = self._start(0) if position is None else self._restore(position)
        """Where `iter(loader)` begins."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch, equal on all ranks; the last may hold padding."""
        return self.steps_of(0)

    def steps_of(self, epoch: int) -> int:
        """Steps of the whole of an epoch."""
        return self._start(epoch).steps_left(self._rows_per_stream)

    def last_rows_of(self, epoch: int, batch: int) -> int:
        """Rows, over all ranks, of an epoch's last step; of the others `batch`."""
        return self._epochs.rows(epoch) % batch or batch

    def steps_left(self, epochs: int) -> int:
        """Steps from `position` to the end of a run of `epochs` epochs, equal on all ranks."""
        if self.position.epoch >= epochs:
            return 0
        here = self.position.steps_left(self._rows_per_stream)
        if self._schedule is None:
            return here + (epochs - 1 - self.position.epoch) * self.steps_per_epoch
        return here + sum(map(self.steps_of, range(self.position.epoch + 1, epochs)))

    @property
    def skipped_rows(self) -> int:
        """Rows of this rank lost to corrupt row groups so far (with skip_corrupt)."""
        return self._groups.skipped_rows

    def __iter__(self) -> BatchStream:
        """Batches from `position` on, epoch after epoch without end."""
        later = map(self._start, self._epochs.epochs_from(self.position.epoch + 1))
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
            first_group, rows_G = self._epochs.groups(start.epoch)
            order = EpochOrder(
                rows_G,
                seed=self._seed,
                epoch=start.epoch,
                window_rows=self._window_rows,
                first_group=first_group,
            )
            next_rows = self._epochs.rows(start.epoch + 1)
            plan = EpochPlan(order, start, first_index, streams, self._rows_per_stream, next_rows)
            yield plan
            first_index += plan.num_steps

    def _read(self, order: EpochOrder, number: int) -> Window:
        """Runs on the readers' threads."""
        return self._assembler.join(self._groups.window(order, number, self._seed), order.epoch)

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
        if self._sampled:
            sampler, start = self._epochs.sampler(epoch, self._law, self._seed), self._rank * extra
            extra_item_E = sampler.draw(epoch, step.number, start, start + extra)
            extra_item_E[max(0, self._sampled - start) :] = -1
        position = {**step.position.to_json(), "order": self._order_of(epoch)}
        return self._assembler.batch(step, pieces, extra_item_E, position)

    def _start(self, epoch: int) -> Position:
        return Position.start(epoch, self._epochs.rows(epoch), self._streams)

    def _order_of(self, epoch: int) -> dict[str, Any]:
        return {**self._fingerprint, **self._epochs.order_of(epoch)}

    def _restore(self, position: dict[str, Any]) -> Position:
        made, epoch = position["order"], int(position["epoch"])
        if self._schedule is not None and position["step"] == 0:
            return self._start(epoch)  # of a window that nobody may have known by then
        for name, value in self._order_of(epoch).items():
            if made.get(name) != value:
                raise Mistake(
                    f"the checkpoint's place in the data was taken with {name} = {made.get(name)}, "
                    f"now it is {value}: the rows have another order. Resume with the same "
                    "data and settings, or start a new epoch without the position."
                )
        here, rows = Position.from_json(position), self._epochs.rows(epoch)
        ranges = [piece for stream in here.streams for piece in stream]
        if not all(0 <= start <= stop <= rows for start, stop in ranges):
            raise Mistake(
                f"the checkpoint's place in the data has rows outside 0..{rows}: it was not made "
                "by this run"
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
            marks=None if self._sequences is None else self._sequences.marks,
        )

    @property
    def _list_keys(self) -> tuple[str, ...]:
        used = {list_of(key) for key in self.query_keys}
        return tuple(name for name in LIST_KEYS if name in used)

    @property
    def _context_keys(self) -> tuple[str, ...]:
        keys = (*self.query_keys, *self.dense_keys)
        return tuple(key for key in keys if key.startswith("context."))
