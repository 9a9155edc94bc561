"""`tandem mine`, and rows that take what was mined as negatives of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.datasets import make_dataset
from tests.distributed import run_ranks
from tests.one_rank import begun, checkpoints, resumed, small_data, spec_of
from tests.test_training import _worker, losses
from trainer.base.mistake import Mistake
from trainer.data.events.event_reader import each_event
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.launch.processes import on_this_machine
from trainer.loader.column_plan import make_plan, side_of
from trainer.loader.loader import Loader
from trainer.loader.mined import MinedItems, mined_schema
from trainer.retrieval.arguments import MineArguments
from trainer.retrieval.known import known_users
from trainer.retrieval.mining.mine import mine
from trainer.retrieval.opened import OpenedRun

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("origin") / "run"
    begun(data, out)
    return out


@pytest.fixture(scope="module")
def mined(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mined") / "mined.parquet"
    assert mine(MineArguments(str(run), str(out), k=5, skip=1, workers=1)) == 60
    return out


def liked(data: str, splits: tuple[str, ...]) -> dict[int, set[int]]:
    """Items of each user's events, liked or not."""
    found: dict[int, set[int]] = {}
    for user_E, item_E, _ in each_event(Dataset.load(data), splits):
        for user, item in zip(user_E.tolist(), item_E.tolist(), strict=True):
            found.setdefault(user, set()).add(item)
    return found


def test_it_is_what_the_run_ranks_high_and_training_has_not_met(
    data: str, run: Path, mined: Path
) -> None:
    """By all scores at once; held-out items are mined as any other."""
    table = pq.read_table(mined)
    met = liked(data, ("train",))
    with process_group() as ranks:
        opened = OpenedRun(run, ranks)
        (known,) = known_users(Dataset.load(data), 0, 60, 100, ("train",))
        query_UO = opened.encoder.queries(torch.arange(60), known.history, known.disliked)
        score_UI = (query_UO @ opened.items.embedding_ID.T).double()
        del opened
    for user, items, scores in zip(*(column.to_pylist() for column in table), strict=True):
        score_UI[user, sorted(met[user])] = -torch.inf
        best, item = score_UI[user].topk(6)
        assert items == item.tolist()[1:]
        assert scores == pytest.approx(best.tolist()[1:], abs=1e-5)
    assert table["user"].to_pylist() == sorted(met)
    held_out = liked(data, ("validation", "test"))
    taken = zip(table["user"].to_pylist(), table["items"].to_pylist(), strict=True)
    assert any(held_out[user] & set(items) for user, items in taken)


def test_two_ranks_mine_the_same(data: str, run: Path, mined: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.parquet"
    mine(MineArguments(str(run), str(out), k=5, skip=1, workers=2), on_this_machine(2))
    one, two = pq.read_table(mined), pq.read_table(out)
    assert one["user"].equals(two["user"]) and one["items"].equals(two["items"])


def test_a_row_takes_items_of_its_user_others_in_each_epoch(data: str, mined: Path) -> None:
    dataset = Dataset.load(data)
    items = MinedItems(str(mined), dataset, each=2, seed=1)
    table = pq.read_table(mined)
    of = dict(zip(table["user"].to_pylist(), table["items"].to_pylist(), strict=True))
    user_B, item_B = np.array([3, 3, 7, -1]), np.array([1, 2, 1, -1])
    epochs = [items.take(user_B, item_B, epoch).reshape(4, 2) for epoch in range(30)]
    for taken in epochs:
        for user, own in zip(user_B.tolist(), taken.tolist(), strict=True):
            assert own == [-1, -1] if user < 0 else (set(own) <= set(of[user]) and own[0] != own[1])
    assert {item for taken in epochs for item in taken[0].tolist()} == set(of[3])
    assert (
        items.take(user_B[::-1].copy(), item_B[::-1].copy(), 4).reshape(4, 2)[::-1] == epochs[4]
    ).all()


def test_its_columns_are_seen_by_its_user_alone_and_are_no_draws(data: str, mined: Path) -> None:
    dataset = Dataset.load(data)
    items = MinedItems(str(mined), dataset, each=2, seed=1)
    loader = Loader(
        dataset, query_keys=("user",), local_batch_size=8, extra_candidates=4, mined=items
    )
    batch = next(iter(loader))
    assert batch.item_S.shape == (8 + 4 + 16,)
    plan = make_plan(
        side_of(batch),
        1,
        0,
        8,
        in_batch=True,
        disliked_negatives=False,
        mined=True,
        distinct=True,
        told=True,
    )
    own = {
        (user, item)
        for user, row in zip(
            batch.user_B.tolist(), batch.item_S[12:].view(8, 2).tolist(), strict=True
        )
        for item in row
    }
    shown = zip(plan.visible_to_C.tolist(), plan.id_C.tolist(), strict=True)
    assert {(user, item) for user, item in shown if user >= 0} == own
    assert plan.drawn.tolist() == [8.0, 4.0]
    assert plan.extras is not None and (plan.extras.id_P >= 0).sum() == 4


def given(mined: Path, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    negatives = {
        "mined": str(mined),
        "mined_each": 2,
        "uniform": 8,
        **sections.pop("negatives", {}),
    }
    return {"negatives": negatives, **sections}


def test_one_rank_trains_as_two(data: str, mined: Path, tmp_path: Path) -> None:
    begun(data, tmp_path / "one", **given(mined))
    run_ranks(2, _worker, spec_of(data, tmp_path / "two", **given(mined)))
    begun(data, tmp_path / "without", negatives={"uniform": 8})
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-5)
    assert losses(tmp_path / "without")[1] < one[1]  # more negatives, and none of its user's likes


def test_a_run_that_stops_goes_on_as_if_it_had_not(data: str, mined: Path, tmp_path: Path) -> None:
    with_queue = given(mined, negatives={"queue": 64, "queue_warmup_steps": 2})
    begun(data, tmp_path / "whole", **with_queue)
    stopped = {**with_queue, "training": {"max_steps": 6}}
    begun(data, tmp_path / "run", **stopped)
    resumed(data, tmp_path / "run", **with_queue)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert checkpoints(tmp_path / "run")


def test_files_of_others_are_refused(data: str, mined: Path, tmp_path: Path) -> None:
    dataset = Dataset.load(data)
    other = make_dataset(tmp_path / "other", users=60, items=40, rows=1000, seed=5)
    with pytest.raises(Mistake, match="was mined from other data"):
        MinedItems(str(mined), other, 1, 0)
    for name, columns, wanted in (
        ("beyond", ([1], [[40]], [[1.0]]), "has item ids outside 0..39"),
        ("unordered", ([2, 1], [[3], [3]], [[1.0], [1.0]]), "users do not ascend"),
    ):
        import pyarrow as pa

        schema = mined_schema(dataset)
        arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), tmp_path / name)
        with pytest.raises(Mistake, match=wanted):
            MinedItems(str(tmp_path / name), dataset, 1, 0)
    pq.write_table(pq.read_table(dataset.file("items.parquet")), tmp_path / "table")
    with pytest.raises(Mistake, match="no file of mined negatives"):
        MinedItems(str(tmp_path / "table"), dataset, 1, 0)
    with pytest.raises(Mistake, match="cannot be read"):
        MinedItems(str(tmp_path / "nothing"), dataset, 1, 0)
    with pytest.raises(Mistake, match="is there already"):
        mine(MineArguments("R", str(mined)))
