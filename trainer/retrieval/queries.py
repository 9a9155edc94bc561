"""Held-out queries made of the events in blocks, all of them or a sample.

Every rank reads the same blocks; who encodes which of their rows is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.data.description import AGAIN
from trainer.data.events.event_reader import TEST, EventReader
from trainer.data.events.event_rows import EventRows
from trainer.data.events.event_stream import EventStream
from trainer.data.events.histories import HeldOut, all_of, held_out, users_asked
from trainer.data.events.marks import Marks
from trainer.data.jagged import offsets_of
from trainer.data.schema import Dataset
from trainer.retrieval.search.item_lists import ItemLists

LIST_COLUMNS = ("targets", "disliked_targets", "seen", "history", "disliked")


@dataclass(frozen=True)
class QueryBlock:
    """Users of a split with what is held out for them, and what is known of them before it."""

    user_Q: Tensor
    """User rows, int64; -1 in padding."""
    targets: ItemLists
    """Items each user liked in the split."""
    disliked_targets: ItemLists
    """Items each user disliked in the split."""
    seen: ItemLists
    """Items left out of each user's ranking, sorted."""
    history: ItemLists
    """Liked items before the split, oldest first."""
    disliked: ItemLists
    """Disliked items before the split, oldest first."""
    context: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Of each query, by key; the first of its targets was met in it."""

    def __len__(self) -> int:
        return len(self.user_Q)

    def padded(self, num_queries: int) -> QueryBlock:
        """With queries of nobody at the end, up to `num_queries`."""
        user_Q = torch.nn.functional.pad(self.user_Q, (0, num_queries - len(self)), value=-1)
        lists = {name: getattr(self, name).padded(num_queries) for name in LIST_COLUMNS}
        missing = num_queries - len(self)
        context = {key: np.pad(values, (0, missing)) for key, values in self.context.items()}
        return QueryBlock(user_Q, **lists, context=context)

    def slice(self, start: int, stop: int) -> QueryBlock:
        """Queries start..stop-1."""
        lists = {name: getattr(self, name).slice(start, stop) for name in LIST_COLUMNS}
        context = {key: values[start:stop] for key, values in self.context.items()}
        return QueryBlock(self.user_Q[start:stop], **lists, context=context)


def sample_rows(num_rows: int, sample: int | None, seed: int) -> np.ndarray:
    """Sorted rows of a sample without replacement; all rows where `sample` is None or larger."""
    if sample is None or sample >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, sample, replace=False))


@dataclass(frozen=True)
class Asked:
    """What an evaluation asks, and what was known of items by then."""

    num_queries: int
    """Users with an event that is looked for."""
    read: Callable[[np.ndarray, int], Iterator[QueryBlock]]
    """Blocks of so many of the queries at some rows (sorted), the last one smaller; queries are the
    users asked, ascending."""
    count_I: np.ndarray
    """Train interactions of each item by then, as far as the data still have them."""
    is_new_I: np.ndarray
    """Items that training has not met by then, bool."""


def of_split(
    dataset: Dataset, split: str, count_I: np.ndarray, marks: Marks | None = None
) -> Asked:
    """What a split holds out; marks: what items of histories carry."""
    read = partial(read_queries, dataset, split, marks=marks)
    return Asked(dataset.splits[split].queries, read, count_I, count_I == 0)


def of_window(stream: EventStream, number: int, marks: Marks | None = None) -> Asked:
    """All that is liked in a window, asked as of its beginning."""
    asked_G = stream.facts(number).asked_G
    read = partial(_read_window, stream, number, asked_G, marks)
    before = stream.before(number)
    return Asked(int(asked_G.sum()), read, before.count_I, ~before.liked_I)


def read_queries(
    dataset: Dataset,
    split: str,
    rows: np.ndarray,
    block_size: int,
    marks: Marks | None = None,
) -> Iterator[QueryBlock]:
    """Blocks of `block_size` of the queries at `rows` (sorted), the last one smaller.

    Queries are the users with a positive event in the split, ascending.
    """
    reader = EventReader(dataset)
    number, one_window = SPLITS.index(split), len(dataset.windows) == 1

    def known_of(group: int) -> EventRows:
        return reader.read(group) if one_window else reader.of_users(*reader.range_of(group))

    by_time, limit = dataset.held_out_by_time, dataset.history_length
    found = _found(reader, range(reader.num_groups), number, known_of, by_time, limit, marks)
    return _blocks(found, reader.asked_GS[:, number], rows, block_size)


def _read_window(
    stream: EventStream,
    number: int,
    asked_G: np.ndarray,
    marks: Marks | None,
    rows: np.ndarray,
    block_size: int,
) -> Iterator[QueryBlock]:
    dataset = stream.dataset
    reader, place = EventReader(dataset), stream.numbers.index(number)

    def known_of(group: int) -> EventRows:
        return reader.of_users(*reader.range_of(group), asked_window=place)

    limit = dataset.history_length
    found = _found(reader, stream.groups(number), TEST, known_of, True, limit, marks)
    return _blocks(found, asked_G, rows, block_size)


Found = Callable[[int, int], HeldOut]
"""The queries of a group by its place, of which there have to be so many."""


def _found(
    reader: EventReader,
    groups: range,
    split: int,
    known_of: Callable[[int], EventRows],
    by_time: bool,
    limit: int,
    marks: Marks | None,
) -> Found:
    def found(place: int, expected: int) -> HeldOut:
        known = known_of(groups[place])
        asked = int(np.count_nonzero(users_asked(known, split)))
        if asked != expected:
            raise Mistake(
                f"{reader.where(groups[place])} holds {asked} users with a liked item "
                f"in {SPLITS[split]}, its footer says {expected}: {AGAIN}"
            )
        return held_out(known, split, by_time, limit, marks)

    return found


def _blocks(
    found: Found, asked_G: np.ndarray, rows: np.ndarray, block_size: int
) -> Iterator[QueryBlock]:
    start_G = offsets_of(asked_G)
    waiting: list[HeldOut] = []
    held = 0
    for place, asked in enumerate(asked_G.tolist()):
        first, last = np.searchsorted(rows, start_G[place : place + 2])
        if first == last:
            continue
        waiting.append(found(place, asked).take(rows[first:last] - start_G[place]))
        held += last - first
        if held >= block_size:
            ready = all_of(waiting)
            whole = held - held % block_size
            for at in range(0, whole, block_size):
                yield _block(ready.take(np.arange(at, at + block_size)))
            waiting, held = [ready.take(np.arange(whole, held))], held - whole
    if held:
        yield _block(all_of(waiting))


def _block(asked: HeldOut) -> QueryBlock:
    lists = {name: ItemLists.from_jagged(getattr(asked, name)) for name in LIST_COLUMNS}
    return QueryBlock(torch.from_numpy(asked.user_Q), **lists, context=asked.context)
