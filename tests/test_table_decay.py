"""L2 on the rows a step touches: FBGEMM's CPU kernels have none, so the loss brings it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from embeddings.fused_optimizer import fuse_table_optimizer
from embeddings.tables import Table, build_embedding_bags
from tests.datasets import make_dataset
from tests.test_training import losses, small_config, train
from trainer.model.two_tower import mean_square
from trainer.run.folder import RunSpec

pytestmark = pytest.mark.xdist_group("ranks")


def test_weight_decay_is_refused_where_the_kernels_would_ignore_it() -> None:
    tables = build_embedding_bags([Table("item", 4, 4, ("item",))])
    with pytest.raises(ValueError, match=r"leaves weight decay out.*embedding_penalty"):
        fuse_table_optimizer(tables, "sgd", 0.1, 0.5, "cpu")


def test_the_penalty_acts_alike_on_any_number_of_ranks(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", users=40, items=30, rows=500)
    plain: dict[str, Any] = {"tower": "mf", "similarity": "dot", "use_history": False}
    plain |= {"user_attributes": False, "item_attributes": False}
    curves = []
    for penalty, world_size in ((0.0, 1), (0.3, 1), (0.3, 2)):
        config = small_config(
            model=plain,
            loss={"embedding_penalty": penalty},
            optimizer={"tables": "sgd", "table_learning_rate": 1.0},
            training={"epochs": 1},
        )
        out = tmp_path / f"{penalty}-{world_size}"
        train(RunSpec("ml-100k", config, str(tmp_path / "data"), str(out)), world_size)
        curves.append(losses(out))
    without, one, two = curves
    assert one == pytest.approx(two, rel=1e-4)
    last = max(one)
    assert abs(one[last] - without[last]) > 1e-3


def test_the_penalty_is_half_the_square_a_row() -> None:
    """Two rows of one global batch: (3, 4) and (0, 2) have squares 25 and 4; 29 / 2 / 2 rows.

    With weights 3 and 1, and a drawn item (1, 1) that is no row: (3 * 25 + 4 + 2) / 2 / 4.
    """
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        parts = {"user": torch.tensor([[3.0, 4.0]]), "item": torch.tensor([[0.0, 2.0]])}
        batch = SimpleNamespace(global_weight=torch.tensor(2.0), weight_B=torch.ones(2))
        assert mean_square(parts, batch).item() == pytest.approx(7.25)
        batch = SimpleNamespace(global_weight=torch.tensor(4.0), weight_B=torch.tensor([3.0, 1.0]))
        parts = {
            "user": torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]),
            "item": torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 1.0]]),
        }
        assert mean_square(parts, batch).item() == pytest.approx(81 / 8)
    finally:
        dist.destroy_process_group()
