"""Positions of a sequence that predict several next items: `model.targets`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from losses import build_loss
from tests.losses.cases import make_case
from tests.test_sequence_tower import MODEL, data, packed_of, tower_of  # noqa: F401
from tests.test_training import losses, small_config, train
from trainer.base.mistake import Mistake
from trainer.data.jagged import Jagged
from trainer.data.packing import pack
from trainer.data.schema import Dataset
from trainer.model.task import several_times
from trainer.observe.progress import SilentProgress
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")

TARGETS = 3


def test_rows_ask_for_the_positions_before_them_and_the_start_is_the_last() -> None:
    """Lists of 4 and 1 items: rows that have seen 4, 0, 2 of the first and 1 of the second."""
    sequences = Jagged(np.array([5, 6, 7, 8, 9]), np.array([0, 4, 5]))
    packed = pack(sequences, np.array([0, 3]), np.array([0, 0, 0, 1]), np.array([4, 0, 2, 1]))
    first, second = packed.start_M.tolist()
    asked = packed.with_targets(TARGETS).query_B.view(TARGETS, -1)
    assert asked.tolist() == [
        [first + 4, first, first + 2, second + 1],
        [first + 3, first, first + 1, second],
        [first + 2, first, first, second],
    ]
    share = packed.share_of_targets(TARGETS).view(TARGETS, -1)
    third = pytest.approx(1 / 3)
    assert share.T.tolist() == [[third] * 3, [1, 0, 0], [third] * 3, [0.5, 0.5, 0]]


@pytest.mark.parametrize("name", ["ssm", "ssm_ntr", "sl_at_k"])
def test_the_loss_is_that_of_each_position_by_itself(name: str) -> None:
    """Value and gradient: one call over all against a call for each distance."""
    rows, candidates = make_case()
    number = len(rows.user_B)
    seen_B = np.arange(number) % 4
    sequences = Jagged(np.arange(3 * number), np.arange(number + 1) * 3)
    packed = pack(sequences, np.arange(number), np.arange(number), seen_B)
    queries = [torch.randn_like(rows.query_BD).requires_grad_() for _ in range(TARGETS)]
    loss = build_loss(name, mask_history=True, mask_same_user=True)
    together, _ = loss(several_times(rows, torch.cat(queries), packed), candidates)
    apart = torch.zeros_like(together)
    share_nB = packed.share_of_targets(TARGETS).view(TARGETS, -1)
    for back, query_BD in enumerate(queries):
        counts_B = torch.where(rows.feedback_B < 0, float(back == 0), share_nB[back])
        own = replace(rows, query_BD=query_BD, weight_B=rows.weight_B * counts_B)
        apart = apart + loss(own, candidates)[0]
    torch.testing.assert_close(together, apart)
    leaves = [*queries, rows.positive_BD, candidates.embedding_CD]
    for one, other in zip(
        torch.autograd.grad(together, leaves), torch.autograd.grad(apart, leaves), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert several_times(rows, rows.query_BD, packed) is rows


def config_of(**training: Any) -> Any:
    return small_config(
        model={**MODEL, "item_attributes": False, "user_attributes": True, "targets": TARGETS},
        training={"epochs": 2, **training},
        loss={"name": "ssm_ntr", "mask_history": True, "mask_same_user": True, "hardness": 0.2},
        negatives={"uniform": 30, "queue": 40, "queue_warmup_steps": 2, "log_q": "streaming"},
        optimizer={"schedule": "constant"},
    )


def test_two_ranks_then_one_train_what_one_does(data: Dataset, tmp_path: Path) -> None:  # noqa: F811
    whole = RunSpec("ml-100k", config_of(), data.path, str(tmp_path / "whole"))
    run_worker(whole, SilentProgress())
    spec = RunSpec("ml-100k", config_of(max_steps=8), data.path, str(tmp_path / "run"))
    train(spec, 2)
    run_worker(replace(spec, config=config_of(), resume=True), SilentProgress())
    curve = losses(tmp_path / "whole")
    assert losses(tmp_path / "run") == pytest.approx(curve, rel=1e-3) and len(curve) > 16
    plain = replace(whole.config, model=replace(whole.config.model, targets=1))
    run_worker(replace(whole, config=plain, out=str(tmp_path / "plain")), SilentProgress())
    assert losses(tmp_path / "plain")[1] != pytest.approx(curve[1], rel=1e-3)


def test_other_towers_have_one_target() -> None:
    with pytest.raises(Mistake, match=r"model\.targets=2 is of the sequence tower, not of mf"):
        small_config(model={"tower": "mf", "targets": 2})
