"""What stands in a batch: bags, attributes, counts, padding, extra candidates."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torchrec.streamable import Pipelineable

from tests.datasets import (
    age_of,
    event_paths,
    genre_of,
    make_dataset,
    rewrite_events,
    tags_of,
    with_column,
)
from tests.loader.conftest import bags, epoch_of, expected_rows, make_loader, rows_of
from trainer.data.candidates import CandidateSampler
from trainer.data.features import FeatureStore
from trainer.data.schema import Dataset


def test_attributes_and_counts_of_every_row(dataset: Dataset) -> None:
    train = Counter(row[1] for row in expected_rows(dataset) if row[2] == 1)
    for batch in epoch_of(dataset, extra_candidates=16):
        users, items = batch.user_B.tolist(), batch.item_S.tolist()
        real = [item for item in items if item >= 0]
        assert [bag for bag in bags(batch, "item") if bag] == [[item] for item in real]
        assert bags(batch, "item.genre") == [[genre_of(i)] if i >= 0 else [] for i in items]
        assert bags(batch, "item.tags") == [tags_of(i) if i >= 0 else [] for i in items]
        ages = [[age_of(user)] if user >= 0 else [] for user in users]
        assert bags(batch, "user.age") == ages + [[]] * 16
        assert bags(batch, "user") == [[u] if u >= 0 else [] for u in users] + [[]] * 16
        assert bags(batch, "history")[64:] == [[]] * 16
        assert batch.count_S.tolist() == [train[item] if item >= 0 else 0 for item in items]


def test_types_and_strides(dataset: Dataset) -> None:
    batch = epoch_of(dataset, extra_candidates=3)[0]
    assert batch.features.keys() == [
        "user", "history", "disliked", "user.age", "item", "item.genre", "item.tags",
    ]  # fmt: skip
    assert batch.features.stride() == 67
    assert batch.features.values().dtype == batch.features.lengths().dtype == torch.int64
    assert batch.user_B.dtype == batch.item_S.dtype == batch.count_S.dtype == torch.int64
    assert batch.feedback_B.dtype == torch.int8
    assert batch.weight_B.dtype == batch.global_weight.dtype == torch.float32
    assert batch.global_weight.shape == ()
    assert batch.local_batch_size == 64
    assert isinstance(batch, Pipelineable)
    assert torch.equal(batch.to(torch.device("cpu")).user_B, batch.user_B)


def test_padding(dataset: Dataset) -> None:
    last = epoch_of(dataset)[-1]
    padding = last.weight_B == 0
    assert 0 < padding.sum() < 64
    assert (last.user_B[padding] == -1).all()
    assert (last.item_S[padding] == -1).all()
    assert (last.user_B[~padding] >= 0).all()
    assert float(last.global_weight) == float(last.weight_B.sum())
    for key in tuple(last.features.keys()):
        assert all(not bag for bag, pad in zip(bags(last, key), padding, strict=True) if pad)


def test_a_batch_larger_than_the_data(dataset: Dataset) -> None:
    (batch,) = epoch_of(dataset, splits=("validation",), local_batch_size=800)
    assert int(batch.weight_B.sum()) == dataset.splits["validation"].rows


def test_history_is_cut_to_its_last_items(dataset: Dataset) -> None:
    whole = epoch_of(dataset)
    cut = epoch_of(dataset, history_length=2)
    for a, b in zip(whole, cut, strict=True):
        for key in ("history", "disliked"):
            assert bags(b, key) == [bag[-2:] for bag in bags(a, key)]


def test_positive_feedback_alone(dataset: Dataset) -> None:
    loader = make_loader(dataset, feedback="positive")
    assert loader.num_rows == dataset.splits["train"].positives
    batches = list(loader.epoch(0))
    assert all((batch.feedback_B == 1).all() for batch in batches)
    assert sum(float(batch.global_weight) for batch in batches) == loader.num_rows
    assert all(float(batch.global_weight) == 64 for batch in batches[:-2])


def test_several_splits(dataset: Dataset) -> None:
    loader = make_loader(dataset, splits=("train", "validation"))
    assert loader.num_rows == sum(dataset.splits[s].rows for s in ("train", "validation"))
    with pytest.raises(ValueError, match="no split 'tain'"):
        make_loader(dataset, splits=("tain",))


def test_ids_beyond_what_float32_holds(tmp_path: Path) -> None:
    """Ids near 2^24 differ by one; a passage through float32 would merge them."""
    shift = 2**24 - 3
    dataset = _shifted(make_dataset(tmp_path / "data", users=20, items=20, rows=300), shift)
    on_disk = expected_rows(dataset)
    got = rows_of(
        epoch_of(dataset, query_keys=("user", "history", "disliked"), candidate_keys=("item",))
    )
    assert Counter(got) == Counter(on_disk)
    assert {row[1] for row in got} == set(range(shift, shift + 20))


def _shifted(dataset: Dataset, shift: int) -> Dataset:
    """The same data with every item's row moved up by `shift`."""
    for path in event_paths(dataset):
        rewrite_events(path, lambda t: with_column(t, "item", pc.add(t["item"], shift)))
    num_items = dataset.num_items + shift
    count = pa.array(np.zeros(num_items, dtype=np.int64))
    pq.write_table(pa.table({"count": count}), dataset.file("items.parquet"))
    return replace(dataset, num_items=num_items)


def test_extra_candidates_follow_their_distribution() -> None:
    count = np.array([0, 1, 0, 3, 0, 6, 0])
    by_popularity = CandidateSampler(count, "popularity", seed=3)
    uniform = CandidateSampler(count, "uniform", seed=3)
    draws = 20_000
    popular = np.bincount(by_popularity.draw(0, 0, 0, draws), minlength=7)
    even = np.bincount(uniform.draw(0, 0, 0, draws), minlength=7)
    # Five standard deviations of a binomial count.
    for got, chance in ((popular, count / 10), (even, (count > 0) / 3)):
        assert (np.abs(got - draws * chance) <= 5 * np.sqrt(draws * chance)).all()
    assert not np.array_equal(uniform.draw(0, 0, 0, 50), uniform.draw(0, 1, 0, 50))
    assert not np.array_equal(uniform.draw(0, 0, 0, 50), uniform.draw(1, 0, 0, 50))
    assert np.array_equal(uniform.draw(2, 5, 10, 20), uniform.draw(2, 5, 0, 50)[10:20])


def test_features_outside_of_batches(dataset: Dataset) -> None:
    store = FeatureStore(dataset, ("item", "item.tags", "user.age"))
    features = store.candidate_features(("item", "item.tags"), np.array([5, -1, 2, 7])).bags
    lengths = features["item.tags"].lengths().tolist()
    assert lengths == [len(tags_of(5)), 0, len(tags_of(2)), len(tags_of(7))]
    assert features["item.tags"].values().tolist() == tags_of(5) + tags_of(2) + tags_of(7)
    history = (np.array([4, 3, 9]), np.array([2, 1]))
    queries = store.query_features(
        ("user", "history", "user.age"), np.array([3, 8]), {"history": history}
    ).bags
    assert queries["history"].lengths().tolist() == [2, 1]
    assert queries["history"].values().tolist() == [4, 3, 9]
    assert queries["user.age"].values().tolist() == [age_of(3), age_of(8)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_keys": ("user", "user.shoe_size")}, "no attribute 'user.shoe_size'; it has: "),
        ({"query_keys": ("item",)}, "'item' is no query key"),
        ({"candidate_keys": ("thing",)}, "unknown feature key 'thing'"),
        ({"local_batch_size": 0}, "local_batch_size is 0"),
        ({"history_length": 0}, "history_length is 0"),
        ({"extra_candidates": -1}, "extra_candidates is -1"),
        ({"streams": 5}, "streams = 5 must be a multiple of the 1 ranks"),
        ({"rank": 2, "world_size": 2}, "rank 2 is outside 0..1"),
    ],
)
def test_wrong_arguments(dataset: Dataset, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(dataset, **arguments)
