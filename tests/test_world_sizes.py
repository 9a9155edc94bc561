"""2 -> 4 -> 1 ranks across resumes: each row once an epoch, counted, and the same curve."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.datasets import make_dataset
from tests.definitions import events_of
from tests.distributed import run_ranks
from tests.test_training import _worker, losses, small_config, train
from trainer.data.schema import Dataset
from trainer.run.folder import RunSpec
from trainer.watch.recorder import Recorder

pytestmark = pytest.mark.xdist_group("ranks")


def train_and_note(spec: RunSpec, notes: str) -> None:
    """Train, and write down the epoch, user and item of each row that this rank trained."""
    real = Recorder.record
    noted: list[tuple[int, int, int]] = []

    def record(self: Recorder, place: Any, outputs: Any, seconds: float, batch: Any) -> None:
        users, items = batch.user_B.tolist(), batch.item_S[: len(batch.user_B)].tolist()
        pairs = zip(users, items, strict=True)
        noted.extend((place.epoch, user, item) for user, item in pairs if user >= 0)
        real(self, place, outputs, seconds, batch)

    Recorder.record = record  # type: ignore[method-assign]
    _worker(spec)
    path = Path(notes) / f"{dist.get_world_size()}-{dist.get_rank()}.json"
    path.write_text(json.dumps(noted))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_two_then_four_then_one(sharding: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_dataset(data, users=80, items=60, rows=1500)
    config = small_config(
        training={"epochs": 3},
        optimizer={"schedule": "constant"},
        model={"dropout": 0.0, "sharding": sharding},
    )
    parts, whole, notes = tmp_path / "parts", tmp_path / "whole", tmp_path / "notes"
    notes.mkdir()
    # Stops in the middle of epochs: steps 7 and 18 of 30.
    for ranks, last in ((2, 7), (4, 18), (1, None)):
        until = replace(config, training=replace(config.training, max_steps=last))
        spec = RunSpec("ml-100k", until, str(data), str(parts), resume=ranks != 2)
        run_ranks(ranks, train_and_note, spec, str(notes))
    train(RunSpec("ml-100k", config, str(data), str(whole)), 1)

    seen: dict[int, Counter[tuple[int, int]]] = {0: Counter(), 1: Counter(), 2: Counter()}
    for path in notes.glob("*.json"):
        for epoch, user, item in json.loads(path.read_text()):
            seen[epoch][user, item] += 1
    expected = trained_rows(Dataset.load(data))
    assert expected.total() > 1000
    assert all(rows == expected for rows in seen.values())
    assert losses(parts).keys() == losses(whole).keys()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


def trained_rows(dataset: Dataset) -> Counter[tuple[int, int]]:
    """How often each (user, item) is a positive row of train."""
    return Counter(
        (each.user, each.item)
        for each in events_of(dataset)
        if each.split == "train" and each.feedback > 0
    )
