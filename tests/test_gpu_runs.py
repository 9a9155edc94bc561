"""On a real GPU: every preset trains over NCCL, goes on from a checkpoint, and answers.

Each test leaves what it measured as properties of its case, for the page that `make gpu-check`
writes.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from losses import Precision
from tests.datasets import make_dataset
from tests.test_training import WITH_STATE, losses
from trainer.config.model_section import Block
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
    "hard": {"loss": {"hardness": 0.3}},
    "several positives": {
        "loss": {"name": "bsl", "several_positives": True, "mask_same_user": True}
    },
    "each column": {"negatives": {"distinct": False, "uniform": 64}},
    "crosses": {"model": {"tower": "dcn", "hidden": (64, 64), "residual": True}},
    "narrow attributes": {"model": {"attribute_widths": ("cardinality", "item.genre=8")}},
} | {
    f"{block}, {precision}": {
        "model": {"tower": "sequence", "block": block, "sequence_length": 8, "dropout": 0.1},
        "loss": {"precision": precision, "mask_history": True},
        "negatives": {"uniform": 64},
    }
    for block in get_args(Block)
    for precision in get_args(Precision)
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
    check_that_it_goes_on_and_answers(config, data, tmp_path, record_property)


@pytest.mark.parametrize("way", WAYS)
def test_a_way_of_training_goes_on_from_its_checkpoint(
    way: str, data: Dataset, tmp_path: Path, record_property: Any
) -> None:
    config = small(find_preset("ml-100k", data), WAYS[way])
    check_that_it_goes_on_and_answers(config, data, tmp_path, record_property)


def check_that_it_goes_on_and_answers(
    config: Config, data: Dataset, folder: Path, record_property: Any
) -> None:
    """A run that was stopped has the curve of one that was not; it is evaluated and exported."""
    difference = resumed_difference(config, data, folder)
    record_property("difference", difference)
    assert difference < 1e-3
    run = str(folder / "whole")
    found = evaluate(EvaluateArguments(run, k=(20,)), Here())
    record_property("recall@20", found["recall@20"])
    assert 0 < found["recall@20"] <= 1
    facts = export(ExportArguments(run, str(folder / "out")), Here())
    assert facts["items"] == data.num_items


def resumed_difference(config: Config, data: Dataset, folder: Path) -> float:
    """Largest relative difference of the loss between a run and one that was stopped on its way."""
    whole, parts = folder / "whole", folder / "parts"
    stopped = replace(config, training=replace(config.training, max_steps=STOP))
    for spec in (
        RunSpec("ml-100k", config, data.path, str(whole)),
        RunSpec("ml-100k", stopped, data.path, str(parts)),
        RunSpec("ml-100k", config, data.path, str(parts), resume=True),
    ):
        run_worker(spec, SilentProgress())
    one, other = losses(whole), losses(parts)
    assert list(one) == list(other) == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) for value in one.values())
    return max(abs(other[step] - value) / abs(value) for step, value in one.items())


STEADY: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    **{preset: (preset, {}) for preset in PRESETS},
    **{way: ("ml-100k", WAYS[way]) for way in ("crosses", "ligr, bf16", "hstu, bf16")},
}


@pytest.mark.parametrize("way", STEADY)
def test_a_step_waits_for_nothing_of_ours(
    way: str,
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
    preset, sections = STEADY[way]
    rarely = {"training": {"log_every_steps": STEPS}, "checkpoint": {"every_steps": STEPS}}
    config = small(find_preset(preset, data), sections | rarely)
    run_worker(RunSpec(preset, config, data.path, str(tmp_path / "run")), SilentProgress())
    last = waits[-2]
    record_property("waits", len(last))
    record_property("places", " ".join(sorted(set(last))))
    assert [place for place in last if _is_ours(place)] == []


def _is_ours(place: str) -> bool:
    file = Path(place.rpartition(":")[0])
    return file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ROOMS
