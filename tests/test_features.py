"""Numbers, vectors, context, kinds and weights in training, evaluation and what is exported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tandem
from tests.test_training import logged, losses, small_config, train
from trainer.api.run import close_all
from trainer.base.mistake import Mistake
from trainer.data.feature_types import Scale
from trainer.data.features import FeatureStore
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.dense import NumberInput, VectorInput
from trainer.model.inputs import build_inputs
from trainer.model.trained import load_run
from trainer.model.two_tower import kept_ids
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import PrepareArguments, prepare
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import evaluate_split
from trainer.retrieval.export import export
from trainer.run.folder import RunSpec

pytestmark = pytest.mark.xdist_group("ranks")

USERS, ITEMS, COLD, WIDTH = 60, 50, 6, 3
"""The last COLD items are in no row of the source but have attributes."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return data_of_every_type(tmp_path_factory.mktemp("features"))


KINDS = {"buy": (0.6, "2"), "view": (0.4, "0.5")}


def data_of_every_type(
    folder: Path,
    kinds: dict[str, tuple[float, str]] = KINDS,
    more: dict[str, Any] | None = None,
    **arguments: Any,
) -> Dataset:
    """Users and items in a plane of tastes; the hour turns it.

    Args:
        kinds: how often each is, and what becomes of it.
        more: further columns of the items.
        arguments: of prepare.
    """
    random = np.random.default_rng(0)
    taste, place = random.normal(size=(USERS, WIDTH)), random.normal(size=(ITEMS, WIDTH))
    rows = 2500
    user, hour = random.integers(0, USERS, rows), random.integers(0, 6, rows)
    drawn = random.integers(0, ITEMS - COLD, (rows, 6))
    score = (taste[user][:, None] * place[drawn]).sum(2) + (drawn % 6 == hour[:, None])
    log = {
        "user": user,
        "item": drawn[np.arange(rows), score.argmax(1)],
        "time": 1_600_000_000 + random.permutation(rows) * 1000,
        "what": random.choice([*kinds], rows, p=[share for share, _ in kinds.values()]),
        "worth": random.random(rows) + 0.5,
        "hour": hour,
        "temperature": np.where(random.random(rows) < 0.1, np.nan, random.normal(size=rows)),
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    vectors = [None if n == 3 else each.tolist() for n, each in enumerate(place)]
    price = [None if n % 7 == 2 else float(np.exp(n / 9)) for n in range(ITEMS)]
    items = {
        "item": range(ITEMS),
        "title": [f"t{n}" for n in range(ITEMS)],
        "text": pa.array(vectors, pa.list_(pa.float32())),
        "price": price,
        "brand": [f"b{n % 4}" for n in range(ITEMS)],
        **(more or {}),
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    users = {"user": range(USERS), "age": random.random(USERS) * 60, "taste": taste.tolist()}
    pq.write_table(pa.table(users), folder / "users.parquet")
    given = PrepareArguments(
        str(folder / "log.parquet"),
        str(folder / "data"),
        items=str(folder / "items.parquet"),
        users=str(folder / "users.parquet"),
        number=("price",),
        event_column="what",
        event_weights=tuple(f"{kind}={use}" for kind, (_, use) in kinds.items()),
        weight_column="worth",
        context=("hour", "temperature"),
        **arguments,
    )
    prepare(given, SilentProgress())
    return Dataset.load(folder / "data")


MODEL = {"item_attributes": True, "user_attributes": True, "context_attributes": True}


def config_of(**sections: dict[str, Any]) -> Any:
    model = {**MODEL, "id_dropout": 0.3, **sections.pop("model", {})}
    return small_config(model=model, **sections)


@pytest.fixture(scope="module")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    out = tmp_path_factory.mktemp("finished") / "run"
    config = config_of(training={"epochs": 4}, optimizer={"schedule": "constant"})
    spec = RunSpec("ml-100k", config, data.path, str(out))
    train(spec, 1)
    return spec


TOWERS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "mf": {"tower": "mf", "output_dim": 16},
    "history": {"tower": "history", "history_pooling": "places", "sequence_length": 3},
    "sequence": {"tower": "sequence", "sequence_length": 4},
}


@pytest.mark.parametrize(
    "tower", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in [*TOWERS][1:])]
)
def test_two_ranks_train_what_one_does(tower: str, data: Dataset, tmp_path: Path) -> None:
    config = config_of(model=TOWERS[tower], training={"epochs": 1})
    for ranks in (1, 2):
        train(RunSpec("ml-100k", config, data.path, str(tmp_path / str(ranks))), ranks)
    one, two = (losses(tmp_path / ranks) for ranks in "12")
    assert len(one) > 5 and one == pytest.approx(two, rel=1e-4)


def test_a_resumed_run_has_the_curve_of_one_that_never_stopped(
    data: Dataset, finished: RunSpec, tmp_path: Path
) -> None:
    config = finished.config
    until = replace(config, training=replace(config.training, max_steps=9))
    spec = RunSpec("ml-100k", until, data.path, str(tmp_path / "run"))
    train(spec, 2)
    train(replace(spec, config=config, resume=True), 1)
    assert losses(tmp_path / "run") == pytest.approx(losses(Path(finished.out)), rel=1e-3)


def test_it_learns_and_the_context_tells(data: Dataset, finished: RunSpec, tmp_path: Path) -> None:
    curve = logged(Path(finished.out), "loss")
    assert curve[max(curve)] < 0.9 * curve[1]
    blind = config_of(model=dict.fromkeys(MODEL, False), training={"epochs": 4})
    train(RunSpec("ml-100k", blind, data.path, str(tmp_path / "blind")), 1)
    found = {}
    for name, out in (("all", finished.out), ("ids", str(tmp_path / "blind"))):
        with process_group() as ranks:
            encoder = Encoder.of_run(load_run(out, ranks), ranks)
            found[name] = evaluate_split(encoder, data, "test", (10,), num_groups=2)
    assert found["all"].values["recall@10"] > found["ids"].values["recall@10"]
    assert found["ids"].unknown_items >= COLD and found["all"].unknown_items == 0


@pytest.fixture
def encoder(finished: RunSpec) -> Iterator[Encoder]:
    with process_group() as ranks:
        yield Encoder.of_run(load_run(finished.out, ranks), ranks)


def test_an_item_that_training_never_met_is_told_by_its_attributes(
    data: Dataset, encoder: Encoder
) -> None:
    raw = pq.read_table(data.file("items.parquet"))["raw_id"].to_pylist()
    cold = np.array([row for row, each in enumerate(raw) if each >= ITEMS - COLD])
    assert len(cold) == COLD and not encoder.store.count(cold).any()
    embedding = encoder.candidates(cold)
    assert embedding.norm(dim=1).numpy() == pytest.approx(1, rel=1e-5)
    assert len(torch.unique(embedding, dim=0)) == COLD
    assert not encoder.candidates(np.array([-1])).any()


def test_programs_say_what_the_model_says(
    data: Dataset, finished: RunSpec, encoder: Encoder, tmp_path: Path
) -> None:
    """By ids and features, those of items that are missing too."""
    export(ExportArguments(finished.out, str(tmp_path / "out")))
    items = np.arange(data.num_items)
    store = FeatureStore(data, ("item", "item.text", "item.price", "item.brand"))
    ids = {
        key: torch.from_numpy(np.asarray(store.column(key, items)).astype(np.int64))[:, None]
        for key in ("item", "item.brand")
    }
    names = ("item.text", "item.price")
    dense = {key: torch.from_numpy(store.dense(key, items)).float() for key in names}
    program = torch.export.load(tmp_path / "out/item_encoder.pt2").module()
    wanted = encoder.candidates(items)
    torch.testing.assert_close(program(ids, dense), wanted, rtol=1e-4, atol=1e-5)
    cold = {key: torch.full_like(each, -1) for key, each in ids.items() if key == "item"} | {
        "item.brand": ids["item.brand"]
    }
    assert not torch.allclose(program(cold, dense), wanted), "the id tells too"
    assert program(cold, dense).norm(dim=1).detach().numpy() == pytest.approx(1, rel=1e-4)


def test_recommending_takes_the_context(finished: RunSpec) -> None:
    run = tandem.load(finished.out)
    plain = [each.item for each in run.recommend(3, k=20)]
    at_two = [each.item for each in run.recommend(3, k=20, context={"hour": 2})]
    later = {"hour": "4", "temperature": 1.5}
    at_four = [each.item for each in run.recommend(3, k=20, context=later)]
    assert at_two != at_four and plain != at_two
    for context, message in (
        ({"hours": 2}, "did you mean 'hour'"),
        ({"hour": 99}, "the data never had it; there are 6 values"),
        ({"temperature": "warm"}, "'warm' is not a number"),
    ):
        with pytest.raises(Mistake, match=message):
            run.recommend(3, context=context)
    close_all()  # the process group too


def test_rows_without_their_id_are_the_same_on_any_number_of_ranks() -> None:
    batch = type("Batch", (), {})()
    batch.position, batch.step = {"epoch": 2}, 7
    batch.item_S = torch.arange(100_000)
    kept = kept_ids(batch, 0.3)
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    batch.item_S = torch.flip(batch.item_S, (0,))
    assert torch.equal(kept_ids(batch, 0.3), kept.flip(0))
    batch.step = 8
    again = kept_ids(batch, 0.3).flip(0)
    assert (again & kept).float().mean().item() == pytest.approx(0.49, abs=0.01)


def test_a_number_is_read_on_its_scale() -> None:
    torch.manual_seed(0)
    scale = Scale(True, 2.0, 1.5, (0.0, 1.0, 10.0, 100.0))
    module = NumberInput(scale, 8, 0.1)
    number = torch.tensor([[0.0], [0.5], [10.0], [1e9], [-5.0], [float("nan")]])
    out = module(number)
    assert torch.isfinite(out).all()
    assert torch.equal(out[5], module.missing_D) and not module.missing_D.any()
    weight, bias = module.linear.weight, module.linear.bias
    read = torch.tensor([(np.log1p(0.5) - 2) / 1.5, 0.5, 0.0, 0.0, 0.0])
    torch.testing.assert_close(out[1], weight @ read.float() + bias)
    read = torch.tensor([5.0, 1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(out[3], weight @ read + bias)
    assert out.std().item() < 1


def test_a_vector_is_of_the_tables_size_at_first() -> None:
    torch.manual_seed(0)
    module = VectorInput(32, 16, 0.1)
    vectors = torch.randn(50, 32).half() * 40
    vectors[4] = 0
    out = module(vectors)
    assert torch.equal(out[4], module.missing_D)
    kept = torch.arange(50) != 4
    assert out[kept].std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("what", ["item", "user", "context"])
def test_a_model_asks_for_what_is_there(what: str, tmp_path: Path) -> None:
    log = {"user": [n % 9 for n in range(90)], "item": [n % 11 for n in range(90)]}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    arguments = PrepareArguments(str(tmp_path / "log.parquet"), str(tmp_path / "data"))
    prepare(arguments, SilentProgress())
    model = {**dict.fromkeys(MODEL, False), f"{what}_attributes": True}
    config = small_config(model={**model, "use_history": False})
    with pytest.raises(Mistake, match=f"the dataset has no {what} attributes; give them"):
        build_inputs(config.model, Dataset.load(tmp_path / "data"))
