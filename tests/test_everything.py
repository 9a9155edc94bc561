"""All that a run can be made of, at once: every type of feature, kinds and weights, each source of
negatives, what is learned and averaged, window by window. 1 = 2 = 4 ranks, stopped or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.distributed import run_ranks
from tests.test_features import ITEMS, data_of_every_type
from tests.test_train_windows import evaluations, same, spec_of, stops_at, trained
from tests.test_training import _worker, losses
from trainer.data.schema import Dataset
from trainer.loader.mined import mined_schema
from trainer.run.folder import RunSpec

pytestmark = pytest.mark.xdist_group("ranks")

KINDS = {"buy": (0.5, "2"), "view": (0.3, "0.5"), "hide": (0.2, "negative")}
EVERYTHING: dict[str, dict[str, Any]] = {
    "data": {"windows": True, "history_length": 5},
    "model": {
        "tower": "dcn",
        "hidden": (16,),
        "residual": True,
        "attribute_widths": ("cardinality",),
        "use_user_id": True,
        "use_history": True,
        "shared_item_table": False,
        "user_attributes": True,
        "item_attributes": True,
        "context_attributes": True,
        "id_dropout": 0.3,
        "output_dim": 16,
    },
    "loss": {
        "name": "ssm_ntr",
        "learn_temperature": True,
        "hardness": 0.3,
        "mask_same_user": True,
        "mask_history": True,
        "embedding_penalty": 1e-4,
    },
    "negatives": {
        "uniform": 32,
        "queue": 64,
        "queue_warmup_steps": 2,
        "mined_each": 2,
        "log_q": "streaming",
    },
    "optimizer": {"tower_averaging": 0.9, "tower_weight_decay": 0.01, "warmup_steps": 3},
    "training": {"global_batch_size": 64},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four windows; items of few rows share theirs, and some are in none."""
    tags = [[f"g{n % 5}", f"g{n % 3}"][: n % 3] for n in range(ITEMS)]
    folder = tmp_path_factory.mktemp("everything")
    return data_of_every_type(folder, KINDS, {"tags": tags}, window="10d", min_count=20)


@pytest.fixture(scope="module")
def mined(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some items for two users of three; of which some have only one."""
    path = tmp_path_factory.mktemp("mined") / "mined.parquet"
    random = np.random.default_rng(1)
    users = [user for user in range(data.num_users) if user % 3]
    items = [random.choice(ITEMS - 10, 1 + user % 4, replace=False).tolist() for user in users]
    scores = [[0.0] * len(each) for each in items]
    columns = {"user": users, "items": items, "scores": scores}
    pq.write_table(pa.table(columns, schema=mined_schema(data)), path)
    return str(path)


def spec(data: Dataset, mined: str, out: Path, resume: bool = False) -> RunSpec:
    sections = {**EVERYTHING, "negatives": {**EVERYTHING["negatives"], "mined": mined}}
    return spec_of(Path(data.path), out, resume, **sections)


@pytest.fixture(scope="module")
def whole(data: Dataset, mined: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    trained(spec(data, mined, out))
    return out


def test_the_data_have_it_all(data: Dataset, whole: Path) -> None:
    kinds = {each.kind for each in data.attributes.values()}
    assert kinds == {"single", "multi", "number", "vector"}
    assert {name.split(".")[0] for name in data.attributes} == {"item", "user", "context"}
    assert len(data.windows) == 4 and data.has_weights and "item" in data.table_rows
    assert len({kind.weight for kind in data.kinds}) > 1
    assert len(evaluations(whole)) == 3 and len(losses(whole)) > 20


def test_two_ranks_and_then_four_train_what_one_does(
    data: Dataset, mined: str, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    begun = spec(data, mined, out)
    until = replace(begun.config.training, max_steps=len(losses(whole)) // 2)
    run_ranks(2, _worker, replace(begun, config=replace(begun.config, training=until)))
    assert len(losses(out)) == until.max_steps
    run_ranks(4, _worker, spec(data, mined, out, True))
    assert losses(out) == pytest.approx(losses(whole), rel=1e-3)
    for one, other in zip(evaluations(whole), evaluations(out), strict=True):
        assert other["window"] == one["window"]
        assert other["recall@20"] == pytest.approx(one["recall@20"], abs=0.03)


def test_stopped_within_a_window_it_goes_on_to_the_last_bit(
    data: Dataset, mined: str, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    trained(spec(data, mined, out), stops_at(evaluations(whole)[0]["step"] + 2))
    assert len(losses(out)) < len(losses(whole))
    trained(spec(data, mined, out, True))
    same(out, whole)
