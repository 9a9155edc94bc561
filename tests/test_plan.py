"""Plans for clusters that are not there: bytes counted by hand, advice where it does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.profiler import ProfilerActivity

from embeddings.sharding import Layout, make_planner
from tests.datasets import make_dataset
from tests.distributed import run_ranks
from tests.test_training import losses, small_config, train
from trainer.base.byte_sizes import as_bytes, bytes_of
from trainer.base.mistake import Mistake
from trainer.command_line import PlanArguments
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks, process_group
from trainer.loader.mined import MinedItems, mined_schema
from trainer.model.build import build_loader, build_model
from trainer.model.inputs import build_inputs
from trainer.model.memory import least_bytes
from trainer.run.folder import RunSpec
from trainer.tools.distinct_columns import distinct_share
from trainer.tools.plan import make_plan
from trainer.tools.planned_gpus import FoundGpus, device_bytes, planned_gpus

GIB = 1024**3

pytestmark = pytest.mark.xdist_group("ranks")


def test_bytes_of_a_rank(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    config = find_preset("default")
    config = replace(
        config,
        model=replace(config.model, tower="mf", dim=64, use_history=False),
        negatives=replace(config.negatives, in_batch=True, uniform=0, distinct=False),
        training=replace(config.training, global_batch_size=1024),
    )
    plan = make_plan(config, dataset, gpus=8, gpu_bytes=80 * GIB)
    # Row-wise over 8, with a row for unknown ids: 61 items -> 8 rows at most, 81 users -> 11.
    # 19 rows x 64 columns x 4 bytes.
    assert plan.estimate.weights == 19 * 64 * 4
    assert plan.estimate.optimizer_state == 19 * 4  # row-wise Adagrad: one float32 a row
    # 1024 gathered columns x 64 x 4 bytes, 7/8 of them sent away, there and back.
    assert plan.estimate.sent_candidates == 2 * 1024 * 64 * 4 * 7 // 8
    assert plan.estimate.fits and plan.advice == ()
    assert plan.tables is not None
    assert max(rows for _, rows in plan.tables["user"]["rows_by_rank"]) == 11  # type: ignore[attr-defined]


def test_a_catalog_that_does_not_fit_is_told_what_helps(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    dataset = replace(dataset, num_items=2_000_000_000)
    plan = make_plan(find_preset("default"), dataset, gpus=4, gpu_bytes=80 * GIB)
    assert not plan.estimate.fits
    assert plan.tables is None
    advice = "\n".join(plan.advice)
    assert "--model.table-precision fp16 saves" in advice
    first, second = (line.partition("saves about ")[2] for line in plan.advice[:2])
    assert bytes_of(first.removesuffix(" a GPU"), "") >= bytes_of(second.removesuffix(" a GPU"), "")
    # 2e9 rows x (256 + 4) bytes = 484 GiB over GPUs with about 71 GiB to give: 7 of them.
    assert "about 7 GPUs" in advice


def test_memory_is_written_as_people_do() -> None:
    assert device_bytes("80GB") == 80_000_000_000
    assert device_bytes("1.5 GiB") == 3 * GIB // 2
    with pytest.raises(ValueError, match="'80' is 80 bytes, no GPU's memory: write 80GB"):
        device_bytes("80")
    for wrong in ("eighty", "1.2.3GB", "-80GB", "nan", "1e400GB", "9" * 400 + "GB", "", "80 XB"):
        with pytest.raises(Mistake, match="is no size"):
            device_bytes(wrong)
    with pytest.raises(Mistake, match="more than any GPU's memory"):
        device_bytes("9" * 18 + "GB")
    assert as_bytes(300) == "300 B"
    assert as_bytes(2.5 * 1024**2) == "2.5 MiB"
    assert as_bytes(80 * GIB) == "80.0 GiB"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_real_ranks_hold_what_the_plan_says(tmp_path: Path, precision: str) -> None:
    dataset = make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    config = small_config(model={"table_precision": precision})
    plan = make_plan(config, dataset, gpus=2, gpu_bytes=GIB)
    held = run_ranks(2, _bytes_held, config, dataset)
    assert plan.estimate.weights == max(weights for weights, _ in held)
    assert plan.estimate.optimizer_state == max(state for _, state in held)


def test_what_settings_allocate_is_in_the_plan(tmp_path: Path) -> None:
    """Each kind of state by the bytes of the objects themselves, on one rank."""
    data = tmp_path / "data"
    dataset = make_dataset(data, users=80, items=60, rows=1500)
    mined = tmp_path / "mined.parquet"
    lists = {"user": [2, 5], "items": [[1, 2, 3], [4]], "scores": [[3.0, 2.0, 1.0], [1.0]]}
    pq.write_table(pa.table(lists, schema=mined_schema(dataset)), mined)
    plain = make_plan(small_config(), dataset, gpus=1, gpu_bytes=GIB).estimate
    config = small_config(
        negatives={"queue": 40, "log_q": "streaming", "mined": str(mined), "mined_each": 2},
        optimizer={"tower_averaging": 0.9},
        loss={"hardness": 0.5, "learn_temperature": True},
    )
    estimate = make_plan(config, dataset, gpus=1, gpu_bytes=GIB).estimate
    with process_group() as ranks:
        head = build_model(config, dataset, ranks).module.head
    parts = {
        "queue": head.task.queue,
        "frequencies": head.task.correction.estimator,
        "tower_average": head.averaged,
    }
    for name, module in parts.items():
        held = [*module.parameters(), *module.buffers()]
        assert getattr(estimate, name) == sum(each.nbytes for each in held) > 0, name
        assert getattr(plain, name) == 0
    least = least_bytes(config, dataset, 1)
    assert (least["queue"], least["frequencies"]) == (estimate.queue, estimate.frequencies)
    learned = [each.numel() for each in head.parameters() if each.requires_grad]
    assert estimate.towers == 16 * sum(learned)
    items = MinedItems(str(mined), dataset, 2, 0)
    arrays = [each for each in vars(items).values() if isinstance(each, np.ndarray)]
    assert estimate.host == {"mined negatives": sum(each.nbytes for each in arrays)}
    assert plain.host == {}
    # 128 rows with two mined columns each, and hardness: more is looked up, scored and scaled.
    assert estimate.activations > plain.activations
    state = estimate.tower_average + estimate.queue + estimate.frequencies
    others = estimate.weights + estimate.optimizer_state + estimate.towers + estimate.activations
    assert estimate.total == others + state


@pytest.mark.parametrize(
    "negatives, loss",
    [({"queue": 4096}, {}), ({}, {"hardness": 0.5}), ({"queue": 4096}, {"hardness": 0.5})],
)
def test_the_loss_needs_no_more_than_is_planned(
    negatives: dict[str, Any], loss: dict[str, Any], tmp_path: Path
) -> None:
    """What a queue, and harder negatives, add to the largest that a step holds at once."""
    dataset = make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    model = {"tower": "mf", "use_history": False, "dim": 64}
    plain = small_config(model=model, negatives={"uniform": 512})
    config = small_config(model=model, negatives={"uniform": 512, **negatives}, loss=loss)
    planned = [
        estimate.activations + estimate.queue
        for estimate in (
            make_plan(each, dataset, gpus=1, gpu_bytes=GIB).estimate for each in (plain, config)
        )
    ]
    with process_group() as ranks:
        peaks = [_peak_of_a_step(each, dataset, ranks) for each in (plain, config)]
    queue = 4096 * (64 * 4 + 24) if negatives else 0
    assert peaks[1] - peaks[0] + queue <= 1.05 * (planned[1] - planned[0])


def _peak_of_a_step(config: Config, dataset: Dataset, ranks: Ranks) -> int:
    """Most bytes that forward and backward of a step hold beyond those before it."""
    model = build_model(config, dataset, ranks)
    loader = build_loader(config, dataset, model.module.inputs, ranks, None)
    batch = next(iter(loader.epoch(0)))
    model(batch)[0].backward()  # what is allocated once
    with torch.profiler.profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as seen:
        model(batch)[0].backward()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _bytes_held(config: Config, dataset: Dataset) -> tuple[int, int]:
    """Bytes of this rank's shards, and of their optimizer's state."""
    rank, device = torch.distributed.get_rank(), torch.device("cpu")
    sharded = build_model(config, dataset, Ranks(rank, 2, rank, 2, device))
    weights = sum(
        shard.tensor.nbytes
        for value in sharded.state_dict().values()
        if hasattr(value, "local_shards")
        for shard in value.local_shards()
    )
    state = sum(
        shard.tensor.nbytes
        for states in sharded.fused_optimizer.state_dict()["state"].values()
        for value in states.values()
        if hasattr(value, "local_shards")
        for shard in value.local_shards()
    )
    return weights, state


def test_activations_grow_with_what_the_towers_keep(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    plain = {"tower": "mf", "item_attributes": False, "user_attributes": False}
    sequence = {"tower": "sequence"}
    marked, targets = {"sequence_reads": ("kinds", "dislikes", "gaps")}, {"targets": 3}
    models = [plain, plain | {"tower": "mlp"}, plain | sequence, plain | sequence | marked]
    models.append(models[-1] | targets)
    sizes = [
        make_plan(small_config(model=each), dataset, gpus=2, gpu_bytes=GIB).estimate.activations
        for each in models
    ]
    assert sizes == sorted(set(sizes))


def test_uvm_caching_is_planned_for_gpus_and_refused_on_cpus(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    config = small_config(model={"placement": "uvm_caching"})
    plan = make_plan(config, dataset, gpus=2, gpu_bytes=GIB)
    assert plan.tables is not None
    assert plan.tables["item"]["compute_kernel"] == "fused_uvm_caching"
    tables = build_inputs(config.model, dataset).tables
    with pytest.raises(ValueError, match="on CPUs they are there already: use 'device'"):
        make_planner(tables, Layout(2, 2, "cpu"), 64, placement="uvm_caching")


def test_half_precision_tables_train_on_cpus(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", users=40, items=30, rows=500)
    curves = []
    for precision in ("fp32", "fp16"):
        config = small_config(
            model={"table_precision": precision, "tower": "mf", "use_history": False},
            training={"epochs": 4},
        )
        out = tmp_path / precision
        train(RunSpec("ml-100k", config, str(tmp_path / "data"), str(out)), 1)
        curves.append(list(losses(out).values()))
    full, half = curves
    assert half == pytest.approx(full, rel=0.02)
    assert half[-1] < half[0]


@pytest.mark.parametrize("negatives", [{}, {"uniform": 40}, {"in_batch": False, "popularity": 64}])
def test_the_columns_that_are_different_are_expected_as_they_come(
    negatives: dict[str, Any], tmp_path: Path
) -> None:
    """Against the steps of the loader itself."""
    dataset = make_dataset(tmp_path / "data", users=80, items=60, rows=3000)
    config = small_config(negatives={"uniform": 0, **negatives})
    expected = distinct_share(config, dataset)
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    loader = build_loader(config, dataset, build_inputs(config.model, dataset), ranks, None)
    shares = []
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            item_S = batch.item_S[0 if config.negatives.in_batch else 128 :]
            if batch.local_rows == 128:
                shares.append(len(item_S.unique()) / len(item_S))
    assert expected == pytest.approx(sum(shares) / len(shares), rel=0.05) and expected < 0.7
    off = small_config(negatives={"uniform": 0, **negatives, "distinct": False})
    assert distinct_share(off, dataset) == 1


@pytest.mark.parametrize(
    ("flags", "found", "gpus", "told"),
    [
        (
            {},
            FoundGpus("this machine", 0, 0, None),
            (8, 8, 80_000_000_000),
            [
                "8 GPUs, 74.5 GiB each, at most 8 a machine: assumed, since this machine has no "
                "GPU; set by --gpus, --gpu-memory, --gpus-a-node"
            ],
        ),
        (
            {},
            FoundGpus("this machine", 1, 1, 16 * GIB),
            (1, 1, 16 * GIB),
            ["1 GPU, 16.0 GiB each, at most 1 a machine: as this machine has"],
        ),
        (
            {"gpus_a_node": 2},
            FoundGpus("the cluster at auto", 16, 4, None),
            (16, 2, 80_000_000_000),
            [
                "16 GPUs: as the cluster at auto has",
                "74.5 GiB each: assumed, since the cluster at auto does not say it; set by "
                "--gpu-memory",
            ],
        ),
        (
            {"gpus": 3, "gpu_memory": "1GiB", "gpus_a_node": 1},
            FoundGpus("this machine", 8, 8, GIB),
            (3, 1, GIB),
            [],
        ),
    ],
)
def test_a_plan_is_of_the_gpus_there_are_and_says_what_it_assumes(
    flags: dict[str, Any], found: FoundGpus, gpus: tuple[int, int, int], told: list[str]
) -> None:
    arguments = PlanArguments("DATA", find_preset("default"), **flags)
    planned = planned_gpus(arguments, found)
    assert (planned.count, planned.a_node, planned.memory) == gpus
    assert list(planned.told) == told
