"""On a real GPU: every preset trains over NCCL, goes on from a checkpoint, and answers.

Each test leaves what it measured as properties of its case, for the page that `make gpu-check`
writes.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.datasets import make_dataset
from tests.test_training import WITH_STATE, losses
from trainer.config.presets import PRESETS, find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.launch.here import Here
from trainer.observe.phases import TimedPipeline
from trainer.observe.progress import SilentProgress
from trainer.retrieval.arguments import EvaluateArguments, ExportArguments
from trainer.retrieval.evaluate_run import evaluate
from trainer.retrieval.export import export
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.gpu
STEPS, STOP = 12, 7
ROOT = Path(__file__).parents[1]
ROOMS = ("trainer", "losses", "embeddings")
SMALL: dict[str, dict[str, Any]] = {
    "training": {"max_steps": STEPS, "global_batch_size": 512, "log_every_steps": 1},
    "checkpoint": {"every_steps": 4},
    "optimizer": {"schedule": "constant"},  # one with an end would have it at the stop
    "evaluation": {"every_epochs": 0, "patience": None},
    "metrics": {"enabled": False},
}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "all state": WITH_STATE,
    "bf16": {"loss": {"precision": "bf16"}},
    "ring": {"loss": {"ring": True}},
    "sgd": {"optimizer": {"tables": "sgd"}},
    "adagrad": {"optimizer": {"tables": "adagrad"}},
    "adam": {"optimizer": {"tables": "adam"}},
    "table decay": {"optimizer": {"table_weight_decay": 1e-4}},
    "uvm_caching": {"model": {"placement": "uvm_caching"}},
    "table_wise": {"model": {"sharding": "table_wise"}},
    "fp16 tables": {"model": {"table_precision": "fp16"}},
    "dislikes": {"loss": {"name": "ssm_ntr"}},
    "two masks": {"loss": {"mask_same_user": True, "mask_history": True}},
    "sequence": {"model": {"tower": "sequence"}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield make_dataset(tmp_path_factory.mktemp("data") / "data", users=300, items=200, rows=9000)


def small(config: Config, sections: dict[str, dict[str, Any]]) -> Config:
    changed = {
        name: replace(getattr(config, name), **SMALL.get(name, {}) | sections.get(name, {}))
        for name in {*SMALL, *sections}
    }
    return replace(config, **changed)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_goes_on_and_answers(
    preset: str, data: Dataset, tmp_path: Path, record_property: Any
) -> None:
    config = small(find_preset(preset, data), {})
    difference = resumed_difference(config, preset, data, tmp_path)
    record_property("difference", difference)
    assert difference < 1e-3
    run = str(tmp_path / "whole")
    found = evaluate(EvaluateArguments(run, k=(20,)), Here())
    record_property("recall@20", found["recall@20"])
    assert 0 < found["recall@20"] <= 1
    facts = export(ExportArguments(run, str(tmp_path / "out")), Here())
    assert facts["items"] == data.num_items


@pytest.mark.parametrize("way", WAYS)
def test_a_way_of_training_goes_on_from_its_checkpoint(
    way: str, data: Dataset, tmp_path: Path, record_property: Any
) -> None:
    config = small(find_preset("ml-100k", data), WAYS[way])
    difference = resumed_difference(config, way, data, tmp_path)
    record_property("difference", difference)
    assert difference < 1e-3


def resumed_difference(config: Config, name: str, data: Dataset, folder: Path) -> float:
    """Largest relative difference of the loss between a run and one that was stopped on its way."""
    whole, parts = folder / "whole", folder / "parts"
    stopped = replace(config, training=replace(config.training, max_steps=STOP))
    for spec in (
        RunSpec(name, config, data.path, str(whole)),
        RunSpec(name, stopped, data.path, str(parts)),
        RunSpec(name, config, data.path, str(parts), resume=True),
    ):
        run_worker(spec, SilentProgress())
    one, other = losses(whole), losses(parts)
    assert list(one) == list(other) == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) for value in one.values())
    return max(abs(other[step] - value) / abs(value) for step, value in one.items())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_of_a_preset_waits_for_nothing_of_ours(
    preset: str,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    """Once kernels are compiled, the host queues a step and goes on: TorchRec's exchange of ids
    alone reads from the device."""
    waits: list[list[str]] = []
    progress = TimedPipeline.progress

    def watched(self: TimedPipeline, source: Any) -> Any:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                outputs = progress(self, source)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        told = [w for w in caught if "synchronizing CUDA" in str(w.message)]
        waits.append([f"{warned.filename}:{warned.lineno}" for warned in told])
        return outputs

    monkeypatch.setattr(TimedPipeline, "progress", watched)
    sections = {"training": {"log_every_steps": STEPS}, "checkpoint": {"every_steps": STEPS}}
    config = small(find_preset(preset, data), sections)
    run_worker(RunSpec(preset, config, data.path, str(tmp_path / "run")), SilentProgress())
    last = waits[-2]
    record_property("waits", len(last))
    record_property("places", " ".join(sorted(set(last))))
    assert [place for place in last if _is_ours(place)] == []


def _is_ours(place: str) -> bool:
    file = Path(place.rpartition(":")[0])
    return file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ROOMS
