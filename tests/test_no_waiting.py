"""A step's forward and backward behind the tables never waits for the device.

Tensors are fake, on device "meta": reading a value on the host raises, and so does a host tensor
beside them. The Triton kernel, which no machine without a GPU runs, is stood in for.
"""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchrec.sparse.jagged_tensor import KeyedTensor

from losses.kernels.problem import Problem
from tests.datasets import make_dataset
from trainer.config.negatives_section import NegativesConfig
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks
from trainer.loader.batch import Batch
from trainer.loader.column_plan import make_plan, side_of
from trainer.model.build import build_loader, build_task
from trainer.model.inputs import Inputs, build_inputs
from trainer.model.towers import Towers
from trainer.model.two_tower import Head

pytestmark = pytest.mark.xdist_group("ranks")

META = torch.device("meta")
RANKS = Ranks(rank=1, world_size=4, local_rank=1, local_world_size=4, device=torch.device("cpu"))

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "in-batch": ({}, {}, {}),
    "uniform": ({"name": "bsl"}, {"in_batch": False, "uniform": 40, "log_q": "none"}, {}),
    "mixed, queue": ({}, {"uniform": 40, "queue": 60}, {}),
    "streaming": ({"correction": "negatives"}, {"log_q": "streaming", "popularity": 40}, {}),
    "same user": ({"mask_same_user": True}, {"in_batch": False, "uniform": 40}, {}),
    "learned temperature": ({"name": "improved_logq", "learn_temperature": True}, {}, {}),
    "ntr": ({"name": "ntr"}, {"uniform": 40}, {}),
    "threshold": ({"name": "sl_at_k"}, {"uniform": 40}, {}),
    "hardness": ({"hardness": 0.5}, {"uniform": 40}, {}),
    "history": ({"mask_history": True}, {}, {"use_history": True}),
    "sequence": ({}, {}, {"tower": "sequence"}),
    "targets": ({"mask_history": True}, {}, {"tower": "sequence", "targets": 3}),
    "mlp": ({}, {}, {"tower": "mlp", "item_attributes": True, "use_history": True}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "data", users=40, items=30, rows=600)


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense scores in the kernel's place: only shapes are computed here."""

    def kernel_reduction(problem: Problem) -> tuple[Tensor, Tensor]:
        score_BC = problem.query_BD @ problem.candidate_CD.T + problem.bias_C
        for rule in problem.rules:
            values = rule.values
            listed_L = values.value_L + rule.key_C.sum() + (values.last_B - values.first_B).sum()
            score_BC = score_BC + listed_L.sum()
        return torch.logsumexp(score_BC, 1), score_BC.detach().sum(1)

    module = ModuleType("losses.kernels.triton_launch")
    module.kernel_reduction = kernel_reduction  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "losses.kernels.triton_launch", module)
    # Device "meta" has no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def variant_config(
    loss: dict[str, Any], negatives: dict[str, Any], model: dict[str, Any]
) -> Config:
    base = find_preset("ml-100k-mf")
    return replace(
        base,
        model=replace(base.model, dim=16, output_dim=16, hidden=(16,), **model),
        loss=replace(base.loss, backend="triton", **loss),
        negatives=NegativesConfig(**negatives),
        training=replace(base.training, global_batch_size=64),
    )


def one_batch(config: Config, data: Dataset, inputs: Inputs) -> Batch:
    batches = iter(build_loader(config, data, inputs, RANKS, None))
    batch = next(batches)
    batches.close()
    batch.features.length_per_key()  # told on the host before the batch is moved
    plan = make_plan(  # made on the host too; all ranks drew the same here
        side_of(batch).repeat(4, 1),
        4,
        1,
        len(batch.user_B),
        in_batch=config.negatives.in_batch,
        disliked_negatives=config.loss.disliked_negatives,
        mined=False,
        distinct=True,
        told=True,
    )
    return replace(batch, plan=plan)


def on_meta(mode: FakeTensorMode, batch: Batch) -> Batch:
    return batch._with(batch.features.to(META), lambda tensor: mode.from_tensor(tensor).to(META))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_value_is_read_on_the_host(
    variant: str, data: Dataset, four_ranks: None, kernel: None
) -> None:
    config = variant_config(*VARIANTS[variant])
    inputs = build_inputs(config.model, data)
    batch = one_batch(config, data, inputs)
    head = Head(
        Towers(config.model, inputs),
        build_task(config, data, data.num_items),
        0.0,
        0.1,
        0.2,
        config.model.targets,
    ).to(META)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        outputs = run(head, inputs, config.model.dim, on_meta(mode, batch))
    assert "loss" in outputs and "hit_share" in outputs


def run(head: nn.Module, inputs: Inputs, dim: int, batch: Batch) -> dict[str, Tensor]:
    pooled = KeyedTensor(
        keys=list(inputs.keys),
        length_per_key=[dim] * len(inputs.keys),
        values=torch.ones(len(batch.item_S), dim * len(inputs.keys), device=META),
    )
    pooled.values().requires_grad_()
    value, outputs = head(pooled, batch)
    value.backward()
    assert pooled.values().grad is not None
    return outputs


def test_reading_a_value_would_be_noticed() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        float(torch.ones(3, device=META).sum())
