"""Optimizers and schedule by hand: first steps, what decays, and what FBGEMM is told."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn

from embeddings.fused_optimizer import fuse_table_optimizer, sharder_arguments
from embeddings.sharding import Layout, shard
from embeddings.tables import Table, build_embedding_bags
from trainer.config.optimizer_section import OptimizerConfig
from trainer.distributed.ranks import Ranks, process_group
from trainer.model.optimizer import Schedule, build_optimizer

pytestmark = pytest.mark.xdist_group("ranks")


class Small(nn.Module):
    """One table and a tower with a matrix, a bias and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = build_embedding_bags([Table("item", 8, 4, ("item",))])
        self.layer = nn.Linear(4, 4)
        self.gate = nn.Parameter(torch.ones(()))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with process_group() as one:
        yield one


def sharded(ranks: Ranks, decay: float = 0.0) -> Any:
    model = Small()
    fuse_table_optimizer(model.embeddings, "rowwise_adagrad", 0.1, 0.0, "cpu")
    tables = [Table("item", 8, 4, ("item",))]
    fused = sharder_arguments("rowwise_adagrad", decay)
    return shard(model, tables, Layout(1, 1, "cpu"), ranks.device, 4, seed=1, fused=fused)


def test_the_first_step_of_the_towers_is_adams_first(ranks: Ranks) -> None:
    """The rate's length whatever the gradient, and nothing has decayed before it."""
    model = sharded(ranks)
    dense = {"layer": model.module.layer.weight, "gate": model.module.gate}
    before = {name: value.detach().clone() for name, value in dense.items()}
    config = OptimizerConfig(tower_learning_rate=0.01, tower_weight_decay=0.5)
    optimizer = build_optimizer(model, config)
    for name, value in dense.items():
        assert torch.equal(value, before[name])
        value.grad = torch.full_like(value, 3.0)
    towers = dict(optimizer.optimizers)["towers"]
    assert [group["lr"] for group in towers.param_groups] == [0.01, 0.01]
    towers.step()
    # Decoupled decay of the matrix by rate * .5; the gate has none.
    torch.testing.assert_close(dense["layer"], before["layer"] * (1 - 0.005) - 0.01)
    torch.testing.assert_close(dense["gate"], before["gate"] - 0.01)


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.5, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_schedules_by_hand(kind: Any, factors: list[float]) -> None:
    """Two steps of warm-up, then from 1 at step 2 to 0 at step 10, half-way at 6."""
    groups = {name: {"lr": 0.0} for name in ("tables", "towers")}
    parts = [(name, SimpleNamespace(param_groups=[group])) for name, group in groups.items()]
    config = OptimizerConfig(
        schedule=kind, warmup_steps=2, table_learning_rate=0.4, tower_learning_rate=0.002
    )
    optimizer: Any = SimpleNamespace(optimizers=parts)
    schedule = Schedule(optimizer, config, total_steps=10)
    assert [schedule.factor(step) for step in (0, 1, 2, 6, 10)] == pytest.approx(factors)
    if kind == "cosine":
        assert schedule.factor(4) == pytest.approx((1 + 2**-0.5) / 2)
    schedule.set_step(6)
    assert groups["tables"]["lr"] == pytest.approx(0.4 * factors[3])
    assert groups["towers"]["lr"] == pytest.approx(0.002 * factors[3])


@pytest.mark.parametrize(
    ("decay", "mode"), [(0.0, WeightDecayMode.NONE), (0.1, WeightDecayMode.L2)]
)
def test_fbgemm_is_told_how_rowwise_adagrad_decays(
    decay: float, mode: WeightDecayMode, ranks: Ranks
) -> None:
    lookups = sharded(ranks, decay).module.embeddings._lookups
    kernels = [kernel.emb_module for lookup in lookups for kernel in lookup._emb_modules]
    assert [kernel.optimizer_args.weight_decay_mode for kernel in kernels] == [mode.value]


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_weight_decay_that_fbgemm_leaves_out_is_refused(name: Any, device_type: str) -> None:
    tables = build_embedding_bags([Table("item", 4, 4, ("item",))])
    with pytest.raises(ValueError, match=r"table_weight_decay=0.5: .*embedding_penalty"):
        fuse_table_optimizer(tables, name, 0.1, 0.5, device_type)


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Ranks.from_environment().device == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="worker 2 of this machine has no GPU: 2 are visible"):
        Ranks.from_environment()
