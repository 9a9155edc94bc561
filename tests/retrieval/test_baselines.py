"""Baselines against their definitions, written out dense in numpy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import make_dataset
from tests.definitions import events_of
from trainer.data.schema import Dataset
from trainer.launch.here import Here
from trainer.observe.progress import SilentProgress
from trainer.retrieval.baselines.closed_forms import (
    MOST_SQUARE,
    Pairs,
    als,
    ease,
    item_neighbours,
    read_pairs,
    turbo_cf,
)
from trainer.retrieval.baselines.measured import NAMES, Asking, _scorer, measure_baselines


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("pairs") / "data", users=60, items=25, rows=900)


@pytest.fixture(scope="module")
def taken(dataset: Dataset) -> np.ndarray:
    """R, dense: how often who liked what in train."""
    dense = np.zeros((dataset.num_users, dataset.num_items))
    for event in events_of(dataset):
        if event.split == "train" and event.feedback > 0:
            dense[event.user, event.item] += 1
    return dense


@pytest.fixture(scope="module")
def pairs(dataset: Dataset) -> Pairs:
    return read_pairs(dataset)


USERS = torch.tensor([3, 0, 59, 17])


def test_pairs_are_those_of_train(pairs: Pairs, taken: np.ndarray) -> None:
    assert np.array_equal(pairs.user_items.to_dense().numpy(), taken)
    assert np.array_equal(pairs.item_users.to_dense().numpy(), taken.T)
    assert np.array_equal(pairs.rows(USERS).numpy(), taken[USERS])


def test_item_neighbours(pairs: Pairs, taken: np.ndarray) -> None:
    by_user, by_item = (np.maximum(taken.sum(axis), 1) for axis in (1, 0))
    weights = taken.T @ (taken / by_user[:, None] ** 0.5)
    expected = (taken[USERS] / by_item**0.5) @ weights / by_item**0.25
    assert item_neighbours(pairs)(USERS).numpy() == pytest.approx(expected, rel=1e-4)


def test_turbo_cf(pairs: Pairs, taken: np.ndarray) -> None:
    by_user, by_item = (np.maximum(taken.sum(axis), 1) for axis in (1, 0))
    normal = taken / np.sqrt(by_user[:, None] * by_item)
    graph = normal.T @ normal
    expected = taken[USERS] @ (2 * graph - graph @ graph)
    assert turbo_cf(pairs)(USERS).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_ease(pairs: Pairs, taken: np.ndarray) -> None:
    """The weights of each item are the ridge's from all others to it."""
    penalty, found = 7.0, ease(pairs, 7.0)(USERS).numpy()
    for item in (0, 11, 24):
        others = np.delete(taken, item, axis=1)
        square = others.T @ others + penalty * np.eye(others.shape[1])
        weights = np.linalg.solve(square, others.T @ taken[:, item])
        assert found[:, item] == pytest.approx(others[USERS] @ weights, rel=1e-3, abs=1e-5)


def test_als_ranks_as_its_factors_say_where_it_is_installed(pairs: Pairs) -> None:
    pytest.importorskip("implicit", reason="implicit is not installed")
    scorer = als(pairs)
    assert scorer is not None and scorer(USERS).shape == (4, 25)


def test_each_is_measured_as_models_are(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=200, items=100, rows=3000)
    asking = Asking(dataset.path, "test", (5, 10))
    found = Here(SilentProgress()).run(measure_baselines, asking)
    assert [each["name"] for each in found] == list(NAMES)
    measured = {each["name"]: each for each in found if "values" in each}
    assert set(measured) >= set(NAMES[:4])
    for each in measured.values():
        assert 0 < each["values"]["ndcg@10"] <= 1 and each["seconds"] >= 0
    planted = measured["EASE"]["values"]["recall@5"]
    assert planted > 1.5 * measured["popularity"]["values"]["recall@5"]
    assert [each["left_out"] for each in found if "values" not in each] in (
        [],
        ["implicit is not installed"],
    )


def test_too_many_items_are_not_inverted(pairs: Pairs, dataset: Dataset) -> None:
    scorer, why = _scorer("EASE", lambda: pairs, replace(dataset, num_items=MOST_SQUARE + 1))
    assert scorer is None and "15,001 items" in why


def test_a_catalog_may_be_smaller_than_the_lists(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=30, items=8, rows=200)
    found = Here(SilentProgress()).run(measure_baselines, Asking(dataset.path, "test", (5,)))
    assert "values" in next(each for each in found if each["name"] == "EASE")
