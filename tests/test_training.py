"""Training end to end on real processes: world sizes agree, resuming goes on with the same curve."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as mp

from tests.datasets import make_dataset
from trainer.config import Config
from trainer.presets import find_preset
from trainer.progress import SilentProgress
from trainer.run import RunSpec
from trainer.train import run_worker


def small_config(**sections: dict[str, Any]) -> Config:
    """MLP towers over everything the data has, a few small batches, each step logged."""
    config = find_preset("ml-100k")
    settings: dict[str, dict[str, Any]] = {
        "model": {"dim": 16, "output_dim": 16, "hidden": (16,), "dropout": 0.0},
        "training": {"epochs": 2, "global_batch_size": 128, "log_every_steps": 1},
        "metrics": {"enabled": False},
    }
    for name in {*settings, *sections}:
        changes = {**settings.get(name, {}), **sections.get(name, {})}
        config = replace(config, **{name: replace(getattr(config, name), **changes)})
    return config


def train(spec: RunSpec, world_size: int) -> None:
    """Run `spec` on `world_size` gloo ranks, each a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (spec, world_size, port), nprocs=world_size)


def _worker(rank: int, spec: RunSpec, world_size: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    run_worker(spec, SilentProgress())


def losses(run: Path) -> dict[int, float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data"
    make_dataset(path, users=80, items=60, rows=1500)
    return str(path)


def test_two_ranks_train_as_one_does(data: str, tmp_path: Path) -> None:
    """The global batch is the same, so the curve is, to the rounding of sums in another order."""
    config = small_config()
    for world_size in (1, 2):
        out = tmp_path / str(world_size)
        train(RunSpec("ml-100k", config, data, str(out)), world_size)
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) > 15
    assert one == pytest.approx(two, rel=1e-4)


def test_resuming_gives_the_curve_of_the_run_that_never_stopped(data: str, tmp_path: Path) -> None:
    config = small_config(
        checkpoint={"every_steps": 4},
        model={"dropout": 0.1},
        optimizer={"schedule": "constant"},  # a schedule would end at the shorter run's last step
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(RunSpec("ml-100k", config, data, str(whole)), 2)
    stopped = replace(config, training=replace(config.training, max_steps=6))
    train(RunSpec("ml-100k", stopped, data, str(parts)), 2)
    assert max(losses(parts)) == 6
    train(RunSpec("ml-100k", config, data, str(parts), resume=True), 2)
    assert losses(parts) == losses(whole)


def test_a_run_folder_is_not_overwritten(data: str, tmp_path: Path) -> None:
    spec = RunSpec("ml-100k", small_config(), data, str(tmp_path / "run"))
    train(spec, 1)
    with pytest.raises(Exception, match="exists already; choose another --out, or go on"):
        train(replace(spec, run_id="another"), 1)


def test_data_that_changed_is_not_resumed(data: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_dataset(other, users=80, items=60, rows=1500, seed=1)
    spec = RunSpec("ml-100k", small_config(), data, str(tmp_path / "run"))
    train(spec, 1)
    with pytest.raises(Exception, match="changed since"):
        train(replace(spec, data=str(other), resume=True), 1)


def test_a_batch_that_does_not_divide_is_refused(data: str, tmp_path: Path) -> None:
    config = small_config(training={"global_batch_size": 127})
    with pytest.raises(Exception, match="127 does not divide by 2 workers; use 126"):
        train(RunSpec("ml-100k", config, data, str(tmp_path / "run")), 2)
