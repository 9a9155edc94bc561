"""`model.item_vectors`: the item table begins at vectors of the items."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.data.planted import make, some_rows, table, write_csv
from tests.distributed import run_ranks
from tests.one_rank import Notes
from tests.test_training import small_config
from trainer.base.mistake import Mistake
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.build import build_model, start_new_rows
from trainer.model.vector_start import projection
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")
ITEMS = list(range(100, 109))
KNOWN = ITEMS[:-1]
"""Items with a vector."""


def vector_of(item: int) -> list[float]:
    return [item / 100 - 1, -1.5, float(item % 3), 0.25]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("vectors")
    vectors = pa.array([vector_of(item) for item in KNOWN], pa.list_(pa.float32()))
    pq.write_table(pa.table({"item": KNOWN, "text": vectors}), root / "items.parquet")
    source = write_csv(root / "rows.csv", some_rows())
    return make(source, root / "data", items=str(root / "items.parquet")).path


def config_of(name: str | None = "text", **model: Any) -> Config:
    return small_config(
        model={"user_attributes": False, "item_attributes": False, "item_vectors": name, **model},
        training={"global_batch_size": 4, "max_steps": 1},
        evaluation={"every_epochs": 0, "patience": None},
    )


def item_rows(data: str, config: Config, grown_from: int | None) -> list[tuple[int, torch.Tensor]]:
    """This rank's shards of the item table, and the first row of each."""
    with process_group() as ranks:
        dataset = Dataset.load(data)
        model = build_model(config, dataset, ranks)
        if grown_from is not None:
            for weight in model.state_dict().values():
                if hasattr(weight, "local_shards"):
                    [piece.tensor.fill_(7) for piece in weight.local_shards()]
            known = {each.name: each.known_rows for each in model.module.inputs.tables}
            start_new_rows(model, config, dataset, {**known, "item": grown_from})
        weight = model.state_dict()["embeddings.embedding_bags.item.weight"]
        found = [
            (int(piece.metadata.shard_offsets[0]), piece.tensor.clone())
            for piece in weight.local_shards()
        ]
        del model, weight
    return found


def on_rank(data: str, config: Config) -> list[tuple[int, Any]]:
    rank, world_size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    return [(first, rows.numpy()) for first, rows in item_rows(data, config, None)]


def test_items_begin_as_far_apart_as_their_vectors(data: str) -> None:
    """Four columns fit into sixteen: the projection keeps every angle. An item without a vector
    begins as noise or zeros, the row for unknown items as zeros."""
    config = config_of()
    ((_, rows),) = item_rows(data, config, None)
    ((_, noise),) = item_rows(data, config_of(None), None)
    raw = [row["raw_id"] for row in table(Dataset.load(data), "items")]
    there = [place for place, item in enumerate(raw) if item in KNOWN]
    others = [place for place in range(len(rows)) if place not in there]
    assert len(there) == len(KNOWN) and others
    vectors = F.normalize(torch.tensor([vector_of(raw[place]) for place in there]), dim=1)
    own = F.normalize(rows[there], dim=1)
    torch.testing.assert_close(own @ own.T, vectors @ vectors.T, atol=2e-3, rtol=0)
    rms = rows[there].square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, config.model.init_std))
    assert torch.equal(rows[others], noise[others])


def test_two_ranks_begin_as_one(data: str) -> None:
    ((_, whole),) = item_rows(data, config_of(), None)
    pieces = [piece for rank in run_ranks(2, on_rank, data, config_of()) for piece in rank]
    assert len(pieces) == 2
    for first, rows in pieces:
        assert torch.equal(torch.from_numpy(rows), whole[first : first + len(rows)])


def test_new_rows_of_a_table_that_grew_begin_so_too(data: str) -> None:
    ((_, whole),) = item_rows(data, config_of(), None)
    ((_, grown),) = item_rows(data, config_of(), 5)
    assert torch.equal(grown[5:], whole[5:]) and (grown[:5] == 7).all()


@pytest.mark.parametrize(("width", "dim"), [(4, 16), (16, 4), (8, 8)])
def test_a_projection_is_orthonormal(width: int, dim: int) -> None:
    matrix = projection(width, dim, seed=3)
    assert matrix.shape == (width, dim)
    inner = matrix @ matrix.T if width < dim else matrix.T @ matrix
    torch.testing.assert_close(inner, torch.eye(min(width, dim)), atol=1e-5, rtol=0)


def test_what_cannot_be_is_refused(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Mistake, match=r"'image': the dataset has no such vectors.*it has text"):
        run_worker(RunSpec("ml-100k", config_of("image"), data, str(out)), Notes())
    assert not out.exists()
    with pytest.raises(Mistake, match="both say where items begin"):
        replace(config_of().model, spectral_start=1.0)
