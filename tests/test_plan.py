"""Plans for clusters that are not there: bytes counted by hand, advice where it does not fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from trainer.plan import GIB, make_plan, parse_bytes
from trainer.presets import find_preset


def test_bytes_of_a_rank(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    config = find_preset("default")
    config = replace(
        config,
        model=replace(config.model, tower="mf", dim=64, use_history=False),
        negatives=replace(config.negatives, in_batch=True, uniform=0),
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
    # 2e9 rows x (256 + 4) bytes = 484 GiB over GPUs with about 71 GiB to give: 7 of them.
    assert "about 7 GPUs" in advice


def test_memory_is_written_as_people_do() -> None:
    assert parse_bytes("80GB") == 80_000_000_000
    assert parse_bytes("1.5 GiB") == 3 * GIB // 2
    with pytest.raises(ValueError, match="'eighty' is no amount of memory"):
        parse_bytes("eighty")
