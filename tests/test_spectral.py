"""The spectral start: scores of the smoothed graph, and what disliked pairs add to it."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

from embeddings.sharding import sharded_weights
from tests.data.planted import Row, make, write_csv
from tests.definitions import events_of
from trainer.config.default_preset import default_preset
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.build import build_model
from trainer.model.spectral import MET, training_graph

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    rows = [
        Row(user, int(item), float(random.integers(1, 6)))
        for user in range(40)
        for item in random.choice(25, 10, replace=False)
    ]
    return make(write_csv(folder / "rows.csv", rows), folder / "data")


def weights(dataset: Dataset) -> np.ndarray:
    """1 for liked, MET for disliked training pairs, [users, items]."""
    met = np.zeros((dataset.num_users, dataset.num_items))
    for each in events_of(dataset):
        if each.split == "train":
            met[each.user, each.item] = 1 if each.feedback > 0 else MET
    return met


def test_the_matrix_holds_disliked_pairs_at_less(data: Dataset) -> None:
    met = weights(data)
    assert (met == MET).any() and (met == 1).any()
    with process_group() as ranks:
        graph = training_graph(data, ("train",), ranks)
    user_U, item_I = met.sum(1, keepdims=True), met.sum(0, keepdims=True)
    expected = met / np.maximum(np.sqrt(user_U * item_I), 1e-12)
    np.testing.assert_allclose(graph.forth.to_dense().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(graph.back.to_dense().numpy(), expected.T, atol=1e-6)
    np.testing.assert_allclose(graph.degree_I.numpy(), item_I[0], rtol=1e-6)
    np.testing.assert_array_equal(graph.likes_I.numpy(), (met == 1).sum(0))


def test_inner_products_are_the_smoothed_graphs_scores(data: Dataset) -> None:
    """Wider than the catalog, nothing is smoothed: A, longer by likes / root of the degree."""
    config = default_preset(data)
    config = replace(config, model=replace(config.model, dim=28, init_std=1e-6))
    assert config.model.similarity == "dot"
    with process_group() as ranks:
        model = build_model(config, data, ranks)
        graph = training_graph(data, ("train",), ranks)
        tables = {
            name.split(".")[-2]: weight.local_shards()[0].tensor.clone().numpy()
            for name, weight in sharded_weights(model).items()
        }
        del model
        gc.collect()
    scores = tables["user"][: data.num_users] @ tables["item"][: data.num_items].T
    expected = (graph.forth.to_dense() * graph.likes_I / graph.degree_I.sqrt()).numpy()
    of_user = [
        found @ wanted / (wanted @ wanted) for found, wanted in zip(scores, expected, strict=True)
    ]
    np.testing.assert_allclose(scores, np.array(of_user)[:, None] * expected, atol=1e-4)
    assert min(of_user) > 0
