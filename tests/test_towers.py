"""Every tower trains alike on one rank and on two; lists and the spectral start reach it whole."""

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
from trainer.data import met_pairs
from trainer.data.feature_bags import list_bags
from trainer.data.met_pairs import MetPairs, PairRule
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks
from trainer.model.build import build_model
from trainer.model.history import HistoryTower
from trainer.model.inputs import build_inputs
from trainer.run.folder import RunSpec

pytestmark = pytest.mark.xdist_group("ranks")

PLAIN = {"use_history": False, "user_attributes": False, "item_attributes": False}
TOWERS: dict[str, dict[str, Any]] = {
    "history": {**PLAIN, "tower": "history", "history_pooling": "attention"},
    "places": {
        **PLAIN,
        "tower": "history",
        "history_pooling": "places",
        "sequence_length": 3,
        "spectral_start": 1.0,
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
    """Tables start at the same spectrum on any number of ranks."""
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


def test_pairs_are_those_of_train_by_user_and_by_item(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=20, items=12, rows=200)
    pairs = MetPairs(dataset, PairRule())
    of_users, of_items = pairs.of("user", 0, 20), pairs.of("item", 0, 12)
    user_P = np.repeat(np.arange(20), np.diff(of_users.offsets))
    item_P = np.repeat(np.arange(12), np.diff(of_items.offsets))
    by_user = sorted(zip(user_P.tolist(), of_users.values.tolist(), strict=True))
    assert by_user == sorted(zip(of_items.values.tolist(), item_P.tolist(), strict=True))
    assert len(by_user) == pairs.degree("item").sum() == dataset.splits["train"].positives
    few = pairs.of("user", 3, 5)
    assert [few.offsets[0], few.offsets[-1]] == [0, int(np.isin(user_P, (3, 4)).sum())]
    assert few.values.tolist() == of_users.values[np.isin(user_P, (3, 4))].tolist()


def test_one_rank_of_a_machine_reads_the_pairs(data: str, tmp_path: Path) -> None:
    """All pairs are read and sorted in memory: not by each of eight ranks at once."""
    shutil.rmtree(Path(data) / ".derived", ignore_errors=True)
    made = run_ranks(3, _ranks_that_read_pairs, data)
    assert [set(each) for each in made] == [{0}, set(), set()]


def _ranks_that_read_pairs(data: str) -> list[int]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    made: list[int] = []
    read = met_pairs._read_pairs

    def watched(*arguments: Any) -> Any:
        made.append(rank)
        return read(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(met_pairs, "_read_pairs", watched)
        config = small_config(model={"tower": "mf", "spectral_start": 1.0})
        ranks = Ranks(rank, world_size, rank, world_size, torch.device("cpu"))
        model = build_model(config, Dataset.load(data), ranks)
        del model
    gc.collect()
    return made


@pytest.mark.parametrize("what", ["a file", "a link"])
def test_the_pairs_of_read_only_data_are_kept_in_a_folder_of_our_own(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path / "data", users=20, items=12, rows=200)
    monkeypatch.setattr(met_pairs.os, "access", lambda *arguments: False)
    monkeypatch.setattr(met_pairs.tempfile, "gettempdir", lambda: str(tmp_path / "temp"))
    folder = tmp_path / "temp" / f"tandem-{os.getuid()}"
    pairs = MetPairs(dataset, PairRule())
    assert pairs.degree("item").sum() == dataset.splits["train"].positives
    assert folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(folder)
    if what == "a file":
        folder.touch()
    else:
        folder.symlink_to(tmp_path)
    with pytest.raises(Mistake, match=r"is not a folder of this user's.*in TMPDIR"):
        MetPairs(dataset, PairRule())


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
