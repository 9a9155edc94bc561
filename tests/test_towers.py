"""Every tower trains alike on one rank and on two; neighbours and lists reach it whole."""

import gc
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.datasets import make_dataset
from tests.distributed import run_ranks
from tests.test_training import losses, small_config, train
from trainer.base.mistake import Mistake
from trainer.config.model_section import ModelConfig
from trainer.data import neighbours
from trainer.data.feature_bags import list_bags
from trainer.data.neighbours import Draw, NeighbourRule, Neighbours
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks
from trainer.model.build import build_model
from trainer.model.history import HistoryTower
from trainer.model.inputs import build_inputs
from trainer.run.folder import RunSpec

pytestmark = pytest.mark.xdist_group("ranks")

PLAIN = {"use_history": False, "user_attributes": False, "item_attributes": False}
TOWERS: dict[str, dict[str, Any]] = {
    "graph": {**PLAIN, "tower": "graph", "neighbours": 3, "spectral_start": 1.0},
    "history": {**PLAIN, "tower": "history", "history_pooling": "attention"},
    "places": {
        **PLAIN,
        "tower": "history",
        "history_pooling": "places",
        "sequence_length": 3,
    },
    "sasrec": {**PLAIN, "tower": "sequence", "block": "sasrec", "sequence_length": 4},
    "ligr": {**PLAIN, "tower": "sequence", "sequence_length": 30, "user_attributes": True},
    "hstu": {**PLAIN, "tower": "sequence", "block": "hstu", "use_user_id": False},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data"
    make_dataset(path, users=80, items=60, rows=900)
    return str(path)


@pytest.mark.parametrize("name", TOWERS)
def test_two_ranks_train_a_tower_as_one_does(name: str, data: str, tmp_path: Path) -> None:
    """Neighbours are drawn alike, and tables start at the same spectrum, on any number of ranks."""
    config = small_config(
        model=TOWERS[name],
        training={"epochs": 1},
        negatives={"uniform": 64},
    )
    for world_size in (1, 2):
        train(RunSpec("ml-100k", config, data, str(tmp_path / str(world_size))), world_size)
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) > 4
    assert one == pytest.approx(two, rel=1e-3)


def test_neighbours_are_those_of_train_weighed_by_degrees(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=20, items=12, rows=200)
    graph = Neighbours(dataset, NeighbourRule())
    values, lengths, weights = graph.bags("user", np.array([3, -1]))
    assert lengths[1] == 0
    _, user_degree, _ = graph.bags("user", np.arange(20))
    _, item_degree, _ = graph.bags("item", np.arange(12))
    assert user_degree.sum() == item_degree.sum() == dataset.splits["train"].positives
    expected = 1 / np.sqrt(user_degree[3] * item_degree[values].astype(float))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_one_rank_of_a_machine_makes_the_graph(data: str, tmp_path: Path) -> None:
    """All pairs are read and sorted in memory: not by each of eight ranks at once."""
    shutil.rmtree(Path(data) / ".derived", ignore_errors=True)
    made = run_ranks(3, _ranks_that_read_pairs, data)
    assert [set(each) for each in made] == [{0}, set(), set()]


def _ranks_that_read_pairs(data: str) -> list[int]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    made: list[int] = []
    read = neighbours._read_pairs

    def watched(*arguments: Any) -> Any:
        made.append(rank)
        return read(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_read_pairs", watched)
        config = small_config(model={"tower": "mf", "spectral_start": 1.0})
        ranks = Ranks(rank, world_size, rank, world_size, torch.device("cpu"))
        model = build_model(config, Dataset.load(data), ranks)
        del model
    gc.collect()
    return made


@pytest.mark.parametrize("what", ["a file", "a link"])
def test_the_graph_of_read_only_data_is_kept_in_a_folder_of_our_own(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path / "data", users=20, items=12, rows=200)
    monkeypatch.setattr(neighbours.os, "access", lambda *arguments: False)
    monkeypatch.setattr(neighbours.tempfile, "gettempdir", lambda: str(tmp_path / "temp"))
    folder = tmp_path / "temp" / f"tandem-{os.getuid()}"
    graph = Neighbours(dataset, NeighbourRule())
    assert graph.degree("item").sum() == dataset.splits["train"].positives
    assert folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(folder)
    if what == "a file":
        folder.touch()
    else:
        folder.symlink_to(tmp_path)
    with pytest.raises(Mistake, match=r"is not a folder of this user's.*in TMPDIR"):
        Neighbours(dataset, NeighbourRule())


def test_drawn_neighbours_keep_the_sum_and_leave_the_partner_out(tmp_path: Path) -> None:
    """Over many draws, the mean of a bag's weights at each neighbour is the complete bag's."""
    dataset = make_dataset(tmp_path / "data", users=20, items=12, rows=400)
    graph = Neighbours(dataset, NeighbourRule(limit=2))
    values, _, weights = graph.bags("user", np.array([3]))
    complete = np.bincount(values, weights, minlength=12)
    total, draws = np.zeros(12), 3000
    for step in range(draws):
        drawn, lengths, drawn_weights = graph.bags(
            "user", np.array([3]), np.array([-1]), Draw(0, 0, step)
        )
        assert lengths[0] == 2
        total += np.bincount(drawn, drawn_weights, minlength=12)
    np.testing.assert_allclose(total / draws, complete, atol=0.1 * complete.max())
    for step in range(20):
        drawn, _, _ = graph.bags("user", np.array([3]), values[:1], Draw(0, 0, step))
        assert values[0] not in drawn


def test_a_position_of_a_list_counts_from_the_most_recent() -> None:
    lists = {"history": (np.array([5, 6, 7, 8]), np.array([3, 0, 1]))}

    def position(key: str) -> tuple[list[int], list[int]]:
        values, lengths = list_bags(key, lists)
        return np.asarray(values).tolist(), lengths.tolist()

    assert position("history@0") == ([7, 8], [1, 0, 1])
    assert position("history@2") == ([5], [1, 0, 0])


def test_empty_positions_change_nothing() -> None:
    """A tower over a short history is the same whatever stands in the padding's place."""
    torch.manual_seed(0)
    user_nD, item_nD = torch.randn(2, 8), torch.randn(2, 8)
    empty_nD = torch.zeros(2, 8)
    attention = HistoryTower("attention", 2, 8, 0.0, normalise=True)
    assert torch.isfinite(attention([user_nD, empty_nD, empty_nD])).all()
    pooled_nD = attention._pool([empty_nD, item_nD], user_nD)
    torch.testing.assert_close(pooled_nD, item_nD)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(tower="history", history_pooling="places"),
        ModelConfig(tower="sequence"),
    ],
)
def test_an_order_that_is_not_there(model: ModelConfig, data: str) -> None:
    unordered = replace(Dataset.load(data), has_timestamps=False)
    with pytest.raises(ValueError, match=r"reads the order of the history, .* with --in-order"):
        build_inputs(model, unordered)


def test_each_place_has_a_matrix_of_its_own() -> None:
    torch.manual_seed(0)
    user_nD, older_nD, latest_nD = torch.randn(3, 4, 8)
    places = HistoryTower("places", 2, 8, 0.0, normalise=False)
    start_nD = 0.5 * user_nD + 0.5 * (0.5 * older_nD + latest_nD)
    torch.testing.assert_close(places([user_nD, older_nD, latest_nD]), start_nD)
    with torch.no_grad():
        places.values.weight[:, :8] = 0  # the older place's
    torch.testing.assert_close(
        places([user_nD, older_nD, latest_nD]), 0.5 * user_nD + 0.5 * latest_nD
    )
