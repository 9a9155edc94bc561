"""On a real GPU: runs on data of every kind; the presets' tests have ids and categories alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.windows import day_of, make, make_log, write
from tests.datasets import make_dataset
from tests.test_features import MODEL as EVERYTHING
from tests.test_features import TOWERS, data_of_every_type
from tests.test_gpu_runs import check_that_it_goes_on_and_answers, small
from tests.test_training import losses
from trainer.config.presets import find_preset
from trainer.data.schema import Dataset
from trainer.observe.progress import SilentProgress
from trainer.retrieval.arguments import MineArguments
from trainer.retrieval.mining.mine import mine
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.gpu
BATCH = {"training": {"global_batch_size": 128, "max_steps": 12, "log_every_steps": 1}}

WITHOUT_ATTRIBUTES = {"user_attributes": False, "item_attributes": False}


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tower", [*TOWERS, "dcn"])
def test_numbers_vectors_context_and_weights(
    tower: str, precision: str, tmp_path: Path, record_property: Any
) -> None:
    model = {"tower": "mlp", "dim": 16, "output_dim": 16, "hidden": (16,), "id_dropout": 0.3}
    model |= EVERYTHING | TOWERS.get(tower, {"tower": tower, "residual": True})
    sections = {"model": model, "loss": {"precision": precision}, **BATCH}
    data = data_of_every_type(tmp_path)
    config = small(find_preset("ml-100k", data), sections)
    check_that_it_goes_on_and_answers(config, data, tmp_path, record_property)


def test_items_that_begin_at_their_vectors(tmp_path: Path, record_property: Any) -> None:
    data = data_of_every_type(tmp_path)
    model = {"tower": "mf", "item_vectors": "text", "spectral_start": 0.0, "dim": 16}
    config = small(find_preset("gowalla-mf", data), {"model": model, **BATCH})
    check_that_it_goes_on_and_answers(config, data, tmp_path, record_property)


def test_rows_that_are_shared(tmp_path: Path, record_property: Any) -> None:
    source = write(make_log(3, rows=2400), tmp_path / "log.parquet")
    data = make(source, tmp_path / "data", min_count=4, min_user_count=6)
    model = {"tower": "mf", "use_history": True, **WITHOUT_ATTRIBUTES}
    config = small(find_preset("ml-100k", data), {"model": model, **BATCH})
    check_that_it_goes_on_and_answers(config, data, tmp_path, record_property)


def test_mined_negatives(tmp_path: Path, record_property: Any) -> None:
    data = make_dataset(tmp_path / "data", users=300, items=200, rows=9000)
    config = small(find_preset("ml-100k", data), {})
    run_worker(RunSpec("ml-100k", config, data.path, str(tmp_path / "first")), SilentProgress())
    mined = tmp_path / "mined.parquet"
    asked = MineArguments(str(tmp_path / "first"), str(mined), k=5, skip=1, workers=1)
    assert mine(asked) == data.num_users
    taken = {"mined": str(mined), "mined_each": 2, "uniform": 8}
    config = small(find_preset("ml-100k", data), {"negatives": taken})
    check_that_it_goes_on_and_answers(config, data, tmp_path, record_property)


def test_window_by_window_stopped_or_not_it_is_the_same(
    tmp_path: Path, record_property: Any
) -> None:
    data = windows_of(4, tmp_path)
    windows: dict[str, dict[str, Any]] = {
        "data": {"windows": True},
        "loss": {"learn_temperature": True, "hardness": 0.3},
        "negatives": {"log_q": "streaming", "queue": 32, "queue_warmup_steps": 2, "uniform": 16},
        "model": {"tower": "mf", **WITHOUT_ATTRIBUTES},
        "training": {"max_steps": None, "epochs": 1, "global_batch_size": 32},
        "evaluation": {"k": (5, 20)},
    }
    config = small(find_preset("ml-100k", data), windows)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_worker(RunSpec("ml-100k", config, data.path, str(whole)), SilentProgress())
    stopped = replace(config, training=replace(config.training, max_steps=7))
    run_worker(RunSpec("ml-100k", stopped, data.path, str(parts)), SilentProgress())
    again = RunSpec("ml-100k", config, data.path, str(parts), resume=True)
    run_worker(again, SilentProgress())
    one, other = losses(whole), losses(parts)
    assert len(one) > 12 and list(one) == list(other)
    difference = max(abs(other[step] / value - 1) for step, value in one.items())
    record_property("difference", difference)
    assert difference < 1e-3
    assert len((whole / "validation.jsonl").read_text().splitlines()) == 3


def test_equal_columns_as_one_have_the_curve_of_each(tmp_path: Path, record_property: Any) -> None:
    data = make_dataset(tmp_path / "data", users=300, items=40, rows=9000)
    curves = []
    for distinct in (True, False):
        negatives = {"distinct": distinct, "uniform": 64}
        # A mask an item, or one a row: dropout is what may differ.
        sections = {"negatives": negatives, "model": {"dropout": 0.0}}
        config = small(find_preset("ml-100k", data), sections)
        run = tmp_path / str(distinct)
        run_worker(RunSpec("ml-100k", config, data.path, str(run)), SilentProgress())
        curves.append(losses(run))
    one, other = curves
    difference = max(abs(other[step] / value - 1) for step, value in one.items())
    record_property("difference", difference)
    assert difference < 1e-3


def windows_of(days: int, folder: Path) -> Dataset:
    """A window a day, each appended to the data of those before."""
    log = make_log(3, rows=3600, days=days)
    for day in range(days):
        rows = [row for row in log if day_of(row[3]) == day]
        source = write(rows, folder / f"{day}.parquet")
        data = make(source, folder / "data", append=day > 0, window=None if day else "day")
    return data
