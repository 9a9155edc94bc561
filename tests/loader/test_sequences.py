"""Rows read as positions of sequences: what each sees, the order they come in, and exactly once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.windows import make, make_log, write
from tests.datasets import make_dataset
from tests.definitions import by_user, events_of
from tests.loader.conftest import bags, make_loader
from trainer.data.events.histories import cut_into_chunks
from trainer.data.jagged import Jagged, Ranges
from trainer.data.packing import Packed, pack, pack_lists
from trainer.data.schema import Dataset
from trainer.loader.batch import Batch
from trainer.loader.loader import Loader
from trainer.loader.sequence_batches import SequenceReading

Row = tuple[int, int, int, tuple[int, ...]]
LENGTH = 8


def loader_of(dataset: Dataset, length: int = LENGTH, **arguments: object) -> Loader:
    return make_loader(
        dataset,
        **{
            "query_keys": ("user", "user.age", "history"),
            "sequences": SequenceReading(length, with_histories=True),
            "feedback": "positive",
            **arguments,
        },
    )


def seen_by(batch: Batch) -> list[tuple[int, ...]]:
    """Items from each row's start to its query token, read off the tokens."""
    packed = batch.sequences
    assert packed is not None
    place, item = packed.place_N.numpy(), packed.item_D.numpy()
    starts = np.sort(packed.start_M.numpy())
    seen = []
    for token in packed.query_B.tolist():
        start = int(starts[starts <= token][-1])
        assert (packed.position_N[start : token + 1] == torch.arange(token + 1 - start)).all()
        assert (place[start + 1 : token + 1] >= 0).all() and place[start] == -1
        seen.append(tuple(item[place[start + 1 : token + 1]].tolist()))
    return seen


def rows_of(batches: list[Batch]) -> list[Row]:
    rows = []
    for batch in batches:
        users, items = batch.user_B.tolist(), batch.item_S[: len(batch.user_B)].tolist()
        feedback = batch.feedback_B.tolist()
        for row in zip(users, items, feedback, seen_by(batch), strict=True):
            if row[0] >= 0:
                rows.append(row)
    return rows


def expected(dataset: Dataset, splits: tuple[str, ...] = ("train",)) -> Counter[Row]:
    """Every positive train event with all that its user did not dislike strictly before it."""
    found: Counter[Row] = Counter()
    for user, events in by_user(events_of(dataset)).items():
        for each in events:
            if each.split not in splits or each.feedback <= 0:
                continue
            before = [
                e.item
                for e in events
                if e.split in splits and e.feedback >= 0 and (e.time or 0) < (each.time or 0)
            ]
            found[user, each.item, 1, tuple(before)] += 1
    return found


def test_a_row_sees_all_that_is_strictly_before_it(tmp_path: Path) -> None:
    """Ties too: what has one time is not seen by one another."""
    dataset = make_dataset(tmp_path / "data", rows=900, tied=40)
    loader = loader_of(dataset, length=1000)
    assert Counter(rows_of(list(loader.epoch(0)))) == expected(dataset)


def test_long_users_come_in_chunks_and_each_event_is_a_target_once(dataset: Dataset) -> None:
    rows = rows_of(list(loader_of(dataset).epoch(0)))
    whole = expected(dataset)
    assert Counter(row[:3] for row in rows) == Counter(row[:3] for row in whole.elements())
    lists: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for row in whole.elements():
        lists.setdefault(row[:2], []).append(row[3])
    for user, item, _, seen in rows:
        assert len(seen) <= LENGTH
        assert any(
            seen == each if len(each) <= LENGTH else _is_end_of(seen, each)
            for each in lists[user, item]
        )


def _is_end_of(seen: tuple[int, ...], history: tuple[int, ...]) -> bool:
    return len(seen) > LENGTH // 2 and seen == history[len(history) - len(seen) :]


def test_rows_of_a_chunk_stand_together(dataset: Dataset) -> None:
    """So a chunk is read in one pass: there are far fewer sequences than rows."""
    batches = list(loader_of(dataset, streams=1).epoch(0))
    sequences = sum(len(b.sequences.start_M) for b in batches if b.sequences)
    assert sequences < 0.4 * sum(b.local_rows for b in batches)
    users = [row[0] for row in rows_of(batches)]
    assert users != sorted(users)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_ranks_and_a_stop_in_between(dataset: Dataset, world_size: int) -> None:
    """One rank reads 5 steps, others go on: each row once, with what it saw."""
    whole = Counter(rows_of(list(loader_of(dataset, local_batch_size=96).epoch(0))))
    stream = iter(loader_of(dataset, local_batch_size=96))
    first = [next(stream) for _ in range(5)]
    stream.close()
    rows = rows_of(first)
    for rank in range(world_size):
        loader = loader_of(
            dataset,
            local_batch_size=96 // world_size,
            rank=rank,
            world_size=world_size,
            position=first[-1].position,
        )
        rows += rows_of(list(loader.epoch(0)))
    assert Counter(rows) == whole


def test_ranks_together_see_the_batch_of_one(dataset: Dataset) -> None:
    one = list(loader_of(dataset, local_batch_size=64).epoch(1))
    two = [
        list(loader_of(dataset, local_batch_size=32, rank=rank, world_size=2).epoch(1))
        for rank in range(2)
    ]
    for whole, *parts in zip(one, *two, strict=True):
        assert rows_of([whole]) == rows_of(parts)


def test_bags_of_the_history_are_the_distinct_items(dataset: Dataset) -> None:
    for batch in loader_of(dataset, extra_candidates=3).epoch(0):
        packed = batch.sequences
        assert packed is not None and batch.features.stride() == batch.item_S.shape[0]
        assert batch.features.keys()[:3] == ["user", "user.age", "history"]
        held = [bag for bag in bags(batch, "history") if bag]
        assert held == [[item] for item in packed.item_D.tolist()] == sorted(held)
        users = [[user] if user >= 0 else [] for user in batch.user_B.tolist()]
        assert bags(batch, "user")[: len(users)] == users
        assert bags(batch, "item") == [[i] if i >= 0 else [] for i in batch.item_S.tolist()]
        values, offsets = packed.history_values, packed.history_offsets
        assert values is not None and offsets is not None
        histories = [tuple(part.tolist()) for part in values.split(offsets.diff().tolist())]
        assert histories == seen_by(batch)


def test_dislikes_are_targets_where_the_loss_uses_them(dataset: Dataset) -> None:
    rows = rows_of(list(loader_of(dataset, feedback="all").epoch(0)))
    assert Counter(row[2] for row in rows)[-1] == dataset.splits["train"].disliked


def test_carried_events_are_seen_and_no_targets(tmp_path: Path) -> None:
    """Of later windows: rows are each event once, and begin where the window's own do."""
    source = write(make_log(seed=3), tmp_path / "log.parquet")
    dataset = make(source, tmp_path / "data", window="day")
    assert len(dataset.windows) > 2
    keys = {"query_keys": ("user", "history"), "candidate_keys": ("item",)}
    rows = rows_of(list(loader_of(dataset, length=1000, **keys).epoch(0)))
    own = Counter(
        (each.user, each.item)
        for each in events_of(dataset)
        if each.split == "train" and each.feedback > 0
    )
    assert Counter(row[:2] for row in rows) == own
    last = dataset.windows[-1].events
    carried = [len(row[3]) for row in rows]
    assert last and max(carried) > 10


def test_chunks() -> None:
    """8 items at most, a chunk each 4: what lies 9 to 12 before is the first four of the second."""
    stop = np.array([0, 3, 8, 9, 12, 13, 20])
    cut = cut_into_chunks(Ranges(np.arange(30), np.zeros(7, np.int64), stop), 8)
    assert cut.start.tolist() == [0, 0, 0, 4, 4, 8, 12]


def test_sequences_are_laid_in_blocks_of_about_one_length() -> None:
    sizes = np.array([3, 40, 0, 38, 3, 12])
    sequences = Jagged(np.arange(sizes.sum()) % 7, np.append(0, sizes.cumsum()))
    each = np.arange(len(sizes))
    packed = pack(sequences, each, each, sizes)
    assert packed.blocks == ((2, 41), (1, 13), (2, 4), (1, 1))
    assert len(packed.place_N) == 2 * 41 + 13 + 2 * 4 + 1
    assert packed.start_M.tolist() == [95, 0, 103, 41, 99, 82]
    assert int((packed.place_N >= 0).sum()) == sizes.sum()


def test_lists_are_cut_to_their_last_items() -> None:
    packed = pack_lists(np.array([7, 3, 9, 4]), np.array([3, 0, 1]), 2)
    assert _sequences(packed) == [[3, 9], [], [4]]


def _sequences(packed: Packed) -> list[list[int]]:
    pairs = zip(packed.start_M.tolist(), packed.query_B.tolist(), strict=True)
    return [packed.item_D[packed.place_N[a + 1 : b + 1]].tolist() for a, b in pairs]
