"""Each row once an epoch, in an order that no number of ranks changes."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from tests.loader.conftest import bags, epoch_of, expected_rows, make_loader, rows_of
from trainer.data.schema import Dataset
from trainer.loader.batch import Batch
from trainer.loader.order import EpochOrder, Position, default_streams

GLOBAL_BATCH = 192


def by_rank(dataset: Dataset, world_size: int, **arguments: object) -> list[list[Batch]]:
    """All batches of an epoch for each rank."""
    return [
        epoch_of(dataset, rank=rank, world_size=world_size, **arguments)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_row_once_an_epoch(dataset: Dataset, world_size: int) -> None:
    ranks = by_rank(dataset, world_size)
    seen = Counter(row for batches in ranks for row in rows_of(batches))
    assert seen == Counter(expected_rows(dataset))
    assert {len(batches) for batches in ranks} == {
        make_loader(dataset, world_size=world_size).steps_per_epoch
    }


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_ranks_joined_are_the_batch_of_one_rank(dataset: Dataset, world_size: int) -> None:
    streams = 24
    extra = 48
    one = epoch_of(dataset, local_batch_size=GLOBAL_BATCH, streams=streams, extra_candidates=extra)
    ranks = by_rank(
        dataset,
        world_size,
        local_batch_size=GLOBAL_BATCH // world_size,
        streams=streams,
        extra_candidates=extra,
    )
    assert len(one) == len(ranks[0]) > 5
    for step, whole in enumerate(one):
        parts = [batches[step] for batches in ranks]
        rows = GLOBAL_BATCH // world_size
        for name in ("user_B", "feedback_B", "weight_B"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name))
        for name in ("item_S", "count_S"):
            joined = torch.cat(
                [getattr(part, name)[:rows] for part in parts]
                + [getattr(part, name)[rows:] for part in parts]
            )
            assert torch.equal(joined, getattr(whole, name))
        for key in tuple(whole.features.keys()):
            own = [bags(part, key) for part in parts]
            joined_bags = [bag for each in own for bag in each[:rows]]
            joined_bags += [bag for each in own for bag in each[rows:]]
            assert joined_bags == bags(whole, key)
        assert {float(part.global_weight) for part in parts} == {float(whole.weight_B.sum())}
        assert all(part.position == whole.position for part in parts)


def test_extras_that_do_not_divide_are_as_many_as_asked_for(dataset: Dataset) -> None:
    sizes = {"streams": 24, "extra_candidates": 50}
    one = epoch_of(dataset, local_batch_size=GLOBAL_BATCH, **sizes)[0]
    rows = GLOBAL_BATCH // 3
    ranks = by_rank(dataset, 3, local_batch_size=rows, **sizes)
    drawn = torch.cat([batches[0].item_S[rows:] for batches in ranks])
    assert len(drawn) == 51 and int(drawn[-1]) == -1
    assert torch.equal(drawn[:-1], one.item_S[GLOBAL_BATCH:])
    last = ranks[2][0]
    assert int(last.count_S[-1]) == 0 and bags(last, "item")[-1] == []


def test_default_streams_make_1_2_4_8_ranks_agree() -> None:
    assert {default_streams(1024 // ranks, ranks) for ranks in (1, 2, 4, 8)} == {8}
    assert default_streams(1024, 3) == 24
    assert default_streams(1024, 16) == 16
    assert default_streams(5, 3) == 3


@pytest.mark.parametrize("feedback", ["positive", "all"])
def test_every_row_once_across_resumes_at_2_4_1_ranks(dataset: Dataset, feedback: str) -> None:
    seen: Counter = Counter()
    position = None
    for world_size, batch, steps in ((2, 24, 5), (4, 40, 4), (3, 30, 3), (1, 50, None)):
        ends = []
        for rank in range(world_size):
            loader = make_loader(
                dataset,
                rank=rank,
                world_size=world_size,
                local_batch_size=batch,
                position=position,
                feedback=feedback,
            )
            stream = loader.epoch(0)
            batches = [each for each, _ in zip(stream, range(steps or 10**6), strict=False)]
            stream.close()
            seen.update(rows_of(batches))
            ends.append(batches[-1].position)
        assert all(end == ends[0] for end in ends)
        position = json.loads(json.dumps(ends[0]))
    expected = Counter(expected_rows(dataset))
    if feedback == "positive":
        expected = Counter({row: n for row, n in expected.items() if row[2] == 1})
    assert seen == expected
    assert position["epoch"] == 1
    assert position["step"] == 0


def test_resume_gives_the_batches_of_the_run_that_never_stopped(dataset: Dataset) -> None:
    whole = iter(make_loader(dataset, extra_candidates=5))
    batches = [next(whole) for _ in range(50)]
    position = batches[9].position
    resumed = iter(make_loader(dataset, extra_candidates=5, position=position))
    for expected in batches[10:]:
        got = next(resumed)
        assert torch.equal(got.item_S, expected.item_S)
        assert torch.equal(got.features.values(), expected.features.values())
        assert torch.equal(got.features.lengths(), expected.features.lengths())
        assert (got.step, got.position) == (expected.step, expected.position)
    whole.close()
    resumed.close()


def test_resume_at_other_ranks_of_the_same_global_batch_goes_on_alike(dataset: Dataset) -> None:
    one = epoch_of(dataset, local_batch_size=64)
    position = one[3].position
    ranks = by_rank(dataset, 2, local_batch_size=32, position=position)
    for step, whole in enumerate(one[4:]):
        assert torch.equal(torch.cat([each[step].user_B for each in ranks]), whole.user_B)


def test_runs_are_equal_and_epochs_and_seeds_differ(dataset: Dataset) -> None:
    first = rows_of(epoch_of(dataset, 0, seed=1))
    assert rows_of(epoch_of(dataset, 0, seed=1)) == first
    assert rows_of(epoch_of(dataset, 1, seed=1)) != first
    assert rows_of(epoch_of(dataset, 0, seed=2)) != first
    assert Counter(rows_of(epoch_of(dataset, 1, seed=1))) == Counter(first)


def test_epoch_after_epoch(dataset: Dataset) -> None:
    loader = make_loader(dataset)
    stream = iter(loader)
    joined = [next(stream) for _ in range(2 * loader.steps_per_epoch)]
    stream.close()
    assert rows_of(joined) == rows_of(list(loader.epoch(0))) + rows_of(list(loader.epoch(1)))
    assert [each.step for each in joined] == 2 * list(range(loader.steps_per_epoch))


def test_steps_left_in_a_run_of_epochs(dataset: Dataset) -> None:
    loader = make_loader(dataset)
    batches = list(loader.epoch(0))
    assert loader.steps_left(3) == 3 * loader.steps_per_epoch == 3 * len(batches)
    half, end = batches[9].position, batches[-1].position
    assert make_loader(dataset, position=half).steps_left(2) == 2 * len(batches) - 10
    assert make_loader(dataset, position=end).steps_left(2) == len(batches)
    assert make_loader(dataset, position=end).steps_left(1) == 0


def test_order_mixes_rows_evenly() -> None:
    """Where a row comes in one epoch says nothing about where it stood in the files.

    For n rows the rank correlation of independent orders has standard deviation 1/sqrt(n - 1);
    rows that stood side by side come about n/3 apart on average if the order is random.
    """
    group_rows = np.full(200, 50)
    n = int(group_rows.sum())
    start = np.cumsum(group_rows) - group_rows
    places = []
    for epoch in range(2):
        order = EpochOrder(group_rows, seed=5, epoch=epoch, window_rows=2000)
        rows = []
        for window in range(order.num_windows):
            joined = np.concatenate([start[g] + np.arange(50) for g in order.groups(window)])
            rows.append(joined[order.permutation(window)])
        place = np.empty(n, dtype=np.int64)
        place[np.concatenate(rows)] = np.arange(n)
        places.append(place)
    # Groups move as wholes, so 200 of them are the independent draws, not their rows.
    group_sigma = 1 / np.sqrt(len(group_rows) - 1)
    for a, b in ((places[0], np.arange(n)), (places[1], np.arange(n)), tuple(places)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 * group_sigma
    # Inside a window of 2000 rows neighbours of one group lie 2000 / 3 apart on average.
    same_group = np.arange(n - 1) % 50 != 49
    for place in places:
        gap = np.abs(np.diff(place))[same_group].mean()
        assert 0.9 * 2000 / 3 < gap < 1.1 * 2000 / 3


def test_windows_need_not_divide_evenly_and_empty_groups_are_fine() -> None:
    group_rows = np.array([0, 7, 3, 0, 11, 1, 0, 5])
    order = EpochOrder(group_rows, seed=0, epoch=3, window_rows=4)
    assert sorted(np.concatenate([order.groups(w) for w in range(order.num_windows)])) == list(
        range(8)
    )
    assert sum(order.window_rows(w) for w in range(order.num_windows)) == 27
    assert sum(piece.rows for piece in order.segments(2, 26)) == 24


def test_dealing_anew_keeps_every_row_and_evens_the_streams() -> None:
    position = Position.start(0, 103, 4)
    position, _ = position.take(10)
    dealt = position.dealt_to(6)
    rows = [row for ranges in dealt.streams for a, b in ranges for row in range(a, b)]
    assert len(rows) == len(set(rows)) == 103 - 40
    sizes = [sum(b - a for a, b in ranges) for ranges in dealt.streams]
    assert max(sizes) - min(sizes) <= 1
    assert Position.from_json(json.loads(json.dumps(dealt.to_json()))) == dealt


def test_a_position_of_another_order_is_refused(dataset: Dataset) -> None:
    position = epoch_of(dataset, seed=1)[2].position
    with pytest.raises(ValueError, match="taken with seed = 1, now it is 2"):
        make_loader(dataset, seed=2, position=position)
