"""Training end to end on real processes: world sizes agree, a resumed run has the same curve."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.datasets import make_dataset
from tests.distributed import run_ranks
from trainer.command_line import TrainArguments, parse_preset
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.feature_bags import Features
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.trained import load_run
from trainer.observe.progress import SilentProgress
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")


def small_config(**sections: dict[str, Any]) -> Config:
    """MLP towers over everything the data has, a few small batches, each step logged."""
    config = find_preset("ml-100k")
    settings: dict[str, dict[str, Any]] = {
        "model": {"dim": 16, "output_dim": 16, "hidden": (16,), "dropout": 0.0},
        "training": {"epochs": 2, "global_batch_size": 128, "log_every_steps": 1},
        "metrics": {"enabled": False},
    }
    changed = {
        name: replace(getattr(config, name), **{**settings.get(name, {}), **sections.get(name, {})})
        for name in {*settings, *sections}
    }
    return replace(config, **changed)


def train(spec: RunSpec, world_size: int) -> None:
    """Run `spec` on `world_size` gloo ranks, each a process of its own."""
    run_ranks(world_size, _worker, spec)


def _worker(spec: RunSpec) -> None:
    rank, world_size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    run_worker(spec, SilentProgress())


def _worker_of_torchrun(spec: RunSpec) -> None:
    """Each process reads the command line for itself, and so makes an id of its own."""
    _worker(replace(spec, run_id=f"process-{dist.get_rank()}"))


def losses(run: Path) -> dict[int, float]:
    return logged(run, "loss")


def logged(run: Path, name: str) -> dict[int, float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record[name] for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data"
    make_dataset(path, users=80, items=60, rows=1500)
    return str(path)


@pytest.fixture(scope="module")
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """A run of two epochs on one rank, at its end."""
    out = tmp_path_factory.mktemp("finished") / "run"
    spec = RunSpec("ml-100k", small_config(), data, str(out))
    train(spec, 1)
    return spec


def test_ranks_that_torchrun_started_share_one_run(data: str, tmp_path: Path) -> None:
    config = small_config(training={"max_steps": 2})
    run_ranks(2, _worker_of_torchrun, RunSpec("ml-100k", config, data, str(tmp_path / "run")))
    assert sorted(losses(tmp_path / "run")) == [1, 2]
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert facts["run_id"] == "process-0"


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "ssm": {},
    "bsl, uniform": {
        "loss": {"name": "bsl", "temperature": 0.1, "negative_weight": 1.2},
        "negatives": {"in_batch": False, "uniform": 64, "log_q": "none"},
        "optimizer": {"tables": "sgd", "table_learning_rate": 1.0},  # not blind to a lost factor
    },
    "ssm_ntr, streaming": {
        "loss": {"name": "ssm_ntr", "alpha": 0.5},
        "negatives": {"log_q": "streaming", "popularity": 32},
    },
    "ssm_ntr, uniform": {
        "loss": {"name": "ssm_ntr", "mask_same_user": True},
        "negatives": {"in_batch": False, "uniform": 64, "queue": 100, "queue_warmup_steps": 1},
    },
    "ssm, ring, streaming": {
        "loss": {"ring": True, "mask_same_user": True},
        "negatives": {"log_q": "streaming", "popularity": 32},
    },
    "talos, streaming": {
        "loss": {"name": "talos", "top_k": 5},
        "negatives": {"log_q": "streaming", "uniform": 32},
    },
    "ntr, ring": {"loss": {"name": "ntr", "ring": True, "learn_temperature": True}},
    "improved_logq, queue": {
        "loss": {"name": "improved_logq", "mask_same_user": True},
        "negatives": {"queue": 200, "queue_warmup_steps": 3, "uniform": 32},
        "optimizer": {"tables": "sgd", "table_learning_rate": 1.0},
    },
}

SLOW_VARIANTS = {
    *("ssm_ntr, streaming", "ssm, ring, streaming", "ntr, ring", "improved_logq, queue"),
}
"""What the others cover in parts."""


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(each, marks=pytest.mark.slow if each in SLOW_VARIANTS else ())
        for each in VARIANTS
    ],
)
def test_two_ranks_train_as_one_does(variant: str, data: str, tmp_path: Path) -> None:
    """The global batch is the same, so the curve is, to the rounding of sums in another order.

    Losses, negatives and corrections differ by variant; tables after training agree as well.
    """
    # With seed 1 the sums of two ranks put a unit of a ReLU on its other side, in one variant.
    config = small_config(training={"epochs": 1, "seed": 2}, **VARIANTS[variant])
    for world_size in (1, 2):
        out = tmp_path / str(world_size)
        train(RunSpec("ml-100k", config, data, str(out)), world_size)
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) > 8
    assert one == pytest.approx(two, rel=1e-4)
    # AdamW and Adagrad do not see a factor of all gradients, so those are compared.
    one, two = (logged(tmp_path / ranks, "gradient_norm/towers") for ranks in ("1", "2"))
    assert one == pytest.approx(two, rel=1e-3)
    torch.testing.assert_close(
        item_rows(tmp_path / "1", data), item_rows(tmp_path / "2", data), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("in_batch", [True, False])
def test_ssm_ntr_has_negatives_that_ntr_has_not(in_batch: bool, data: str, tmp_path: Path) -> None:
    """Equal settings but for the disliked items: the first losses differ already."""
    curves = {}
    for name in ("ntr", "ssm_ntr"):
        config = small_config(
            loss={"name": name},
            negatives={"in_batch": in_batch, "uniform": 16},
            training={"max_steps": 2, "global_batch_size": 128, "log_every_steps": 1},
        )
        train(RunSpec("ml-100k", config, data, str(tmp_path / name)), 1)
        curves[name] = losses(tmp_path / name)
    assert curves["ssm_ntr"][1] > curves["ntr"][1] + 1e-3


def test_the_ring_trains_as_the_gathered_walk_does(data: str, tmp_path: Path) -> None:
    curves = []
    for ring in (False, True):
        config = small_config(training={"max_steps": 8}, loss={"ring": ring})
        train(RunSpec("ml-100k", config, data, str(tmp_path / str(ring))), 2)
        curves.append(losses(tmp_path / str(ring)))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_losses_are_refused_with_what_they_cannot_take() -> None:
    uniform = {"uniform": 64}
    for sections, message in (
        ({"loss": {"name": "ova"}}, "loss.name=ova with negatives.uniform=0: .* .2048."),
        ({"loss": {"name": "ccl"}, "negatives": {"popularity": 64}}, "loss.name=ccl with"),
        (
            {"loss": {"name": "ccl"}, "negatives": uniform, "model": {"similarity": "dot"}},
            "loss.name=ccl with model.similarity=dot: its margin is on cosines",
        ),
        (
            {"loss": {"name": "improved_logq"}, "negatives": {"log_q": "none"}},
            "loss.name=improved_logq with negatives.log_q=none: .* counts or streaming",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            small_config(**sections)
    assert small_config(loss={"name": "ova", "temperature": None}, negatives=uniform)


def test_what_the_ring_excludes_is_refused() -> None:
    for loss, negatives, message in (
        ({"name": "ssm_ntr"}, {}, "loss.ring with loss.name=ssm_ntr: .* use ntr, or turn ring off"),
        ({}, {"queue": 64}, "loss.ring with negatives.queue=64: .* set one of them only"),
        (
            {"name": "bsl", "several_positives": True, "mask_same_user": True},
            {},
            "loss.ring with loss.several_positives",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            small_config(loss={"ring": True, **loss}, negatives=negatives)


WITH_STATE: dict[str, dict[str, Any]] = {
    "loss": {"learn_temperature": True},
    "negatives": {"queue": 100, "queue_warmup_steps": 2, "uniform": 32, "log_q": "streaming"},
    "optimizer": {"schedule": "constant", "tower_averaging": 0.9, "warmup_steps": 5},
}
"""All that a run keeps beside tables and towers."""


@pytest.mark.parametrize(
    "sections",
    [pytest.param({"optimizer": {"schedule": "constant"}}, marks=pytest.mark.slow), WITH_STATE],
)
def test_resuming_gives_the_curve_of_the_run_that_never_stopped(
    sections: dict[str, dict[str, Any]], data: str, tmp_path: Path
) -> None:
    # A schedule with an end would have it at the shorter run's last step.
    config = small_config(checkpoint={"every_steps": 4}, model={"dropout": 0.1}, **sections)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(RunSpec("ml-100k", config, data, str(whole)), 2)
    stopped = replace(config, training=replace(config.training, max_steps=6))
    train(RunSpec("ml-100k", stopped, data, str(parts)), 2)
    assert max(losses(parts)) == 6
    train(RunSpec("ml-100k", config, data, str(parts), resume=True), 2)
    assert losses(parts) == losses(whole)
    for one, other in zip(tower_values(parts), tower_values(whole), strict=True):
        assert torch.equal(one, other)


def tower_values(run: Path) -> list[torch.Tensor]:
    """The towers that a run is evaluated with, and the loss's parameters."""
    with process_group() as ranks:
        head = load_run(run, ranks).model.head
        values = [*head.encoding.state_dict().values(), *head.task.loss.parameters()]
        copies = [value.detach().clone() for value in values]
        del head, values
    return copies


def test_resuming_on_another_number_of_ranks(data: str, tmp_path: Path) -> None:
    config = small_config(
        training={"max_steps": 12},  # the second epoch's beginning
        checkpoint={"every_steps": 4},
        optimizer={"schedule": "constant"},
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(RunSpec("ml-100k", config, data, str(whole)), 1)
    stopped = replace(config, training=replace(config.training, max_steps=6))
    train(RunSpec("ml-100k", stopped, data, str(parts)), 2)
    train(RunSpec("ml-100k", config, data, str(parts), resume=True), 1)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


def test_a_run_folder_is_not_overwritten(finished: RunSpec) -> None:
    (facts,) = Path(finished.out).glob("checkpoints/step-00000020/checkpoint.json")
    plan = json.loads(facts.read_text())["plan"]
    assert plan["item"] == {
        "sharding_type": "row_wise",
        "compute_kernel": "fused",
        "rows_by_rank": [[0, 61]],
    }
    with pytest.raises(Exception, match="exists already; choose another --out, or go on"):
        train(replace(finished, run_id="another"), 1)


def test_data_that_changed_is_not_resumed(finished: RunSpec, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_dataset(other, users=80, items=60, rows=1500, seed=1)
    with pytest.raises(Exception, match="changed since"):
        train(replace(finished, data=str(other), resume=True), 1)


def test_a_batch_that_does_not_divide_is_refused(data: str, tmp_path: Path) -> None:
    config = small_config(training={"global_batch_size": 127})
    with pytest.raises(Exception, match="127 does not divide by 2 workers; use 126"):
        train(RunSpec("ml-100k", config, data, str(tmp_path / "run")), 2)


def test_resuming_on_extended_data_grows_the_tables(data: str, tmp_path: Path) -> None:
    """Rows of known ids stay as trained; new ones and the row for unknown ids start afresh."""
    out = tmp_path / "run"
    config = small_config(
        model={"user_attributes": False, "item_attributes": False},
        negatives={"log_q": "streaming"},  # whose buckets were made for the items of then
    )
    train(RunSpec("ml-100k", config, data, str(out)), 2)
    extended = make_dataset(tmp_path / "extended", users=90, items=75, rows=1500)
    parent = Dataset.load(data).digest
    extended = replace(extended, parent_digest=parent)
    (tmp_path / "extended" / "dataset.json").write_text(extended.to_json())
    before = item_rows(out, data)
    spec = RunSpec("ml-100k", config, extended.path, str(out), resume=True)
    slow = replace(config.optimizer, table_learning_rate=1e-12, tower_learning_rate=1e-12)
    train(replace(spec, config=replace(config, optimizer=slow)), 2)
    after = item_rows(out, extended.path)
    assert before.shape[0] == 61 and after.shape[0] == 76
    torch.testing.assert_close(after[:60], before[:60], rtol=0, atol=1e-6)
    assert before[60].abs().max() == 0 and after[75].abs().max() == 0
    assert after[60:75].std() == pytest.approx(config.model.init_std, rel=0.3)


def item_rows(run: Path, data: str) -> torch.Tensor:
    """The whole item table of a run's newest checkpoint, read by one rank."""
    with process_group() as ranks:
        model = load_run(run, ranks, data).model
        weight = model.embeddings.state_dict()["embedding_bags.item.weight"]
        rows = weight.local_shards()[0].tensor.clone()
        del model, weight
    return rows


def test_unknown_ids_go_to_their_row_and_are_counted(finished: RunSpec) -> None:
    with process_group() as ranks:
        model = load_run(finished.out, ranks).model
        features = KeyedJaggedTensor(
            keys=["user", "history"],
            values=torch.tensor([3, 80, 81, 5, 60, 99]),
            lengths=torch.tensor([1, 1, 1, 1, 1, 1]),
        )
        query_BO = model.encode_queries(Features(features, {}))
        assert torch.equal(query_BO[1], query_BO[2])  # two unknown users with unknown histories
        assert not torch.equal(query_BO[0], query_BO[1])
        assert {key: int(count) for key, count in model.unknown_ids.items()} == {
            "user": 2,
            "history": 2,
        }
        del model


def test_relative_paths_are_made_absolute_for_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["demo", "--data", "data", "--out", "s3://bucket/run"]
    preset, parsed = parse_preset(flags, "train", TrainArguments)
    spec = parsed.run_spec(preset)
    assert spec.data == str(tmp_path / "data")
    assert spec.out == "s3://bucket/run"


def test_a_start_killed_before_its_config_was_written_is_no_run(data: str, tmp_path: Path) -> None:
    """Found by the soak: such a folder was neither started anew nor resumed."""
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    for name in (".lock", "owner.json.partial", "starts.jsonl", "config.json.partial"):
        (out / name).write_text("")
    train(RunSpec("ml-100k", small_config(training={"epochs": 1}), data, str(out)), 1)
    assert max(losses(out)) == 10
