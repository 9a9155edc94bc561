"""Data whose rare users and items share rows of tables, in training, evaluation and export.

What a model of such data is to do is what one with a row an id does whose rows are equal where
they are shared: the same losses, masks, log Q and rankings, and gradients that add up.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.data.windows import day_of, make, make_log, write
from tests.one_rank import Notes, checkpoints
from tests.test_training import losses, small_config, train
from trainer.config.sections import Config
from trainer.data.features import read_table_rows
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.loader.loader import Loader
from trainer.model.build import build_loader, build_model
from trainer.model.trained import load_run
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import evaluate_model
from trainer.retrieval.export import export
from trainer.retrieval.search.item_lists import ItemLists
from trainer.run.checkpoint_facts import rank_file
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")

LOG = make_log(3, rows=900)
TABLES = "embeddings.embedding_bags."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shared` and `own` of the same three days, and `new.parquet`, the fourth."""
    folder = tmp_path_factory.mktemp("shared")
    for name, later in (("old", False), ("new", True)):
        write([row for row in LOG if (day_of(row[3]) == 3) == later], folder / f"{name}.parquet")
    make(folder / "old.parquet", folder / "own")
    make(folder / "old.parquet", folder / "shared", min_count=4, min_user_count=6)
    return folder


def config_of(**sections: Any) -> Config:
    given: dict[str, dict[str, Any]] = {
        "model": {"tower": "mf", "use_history": True, "output_dim": 16, "hidden": ()},
        "loss": {"mask_history": True},
        "negatives": {"uniform": 16},
        "training": {"epochs": 1, "global_batch_size": 32},
        "optimizer": {"schedule": "constant", "tables": "sgd"},
    }
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    given["model"] |= {"user_attributes": False, "item_attributes": False}
    return small_config(**given)


def row_of(data: Dataset, table: str) -> np.ndarray:
    return read_table_rows(data, "user" if table == "user" else "item").astype(np.int64)


@contextmanager
def both(root: Path, config: Config) -> Iterator[tuple[Any, Any]]:
    """The models of both datasets, with equal values: (of shared rows, of a row an id)."""
    with process_group() as ranks:
        shared, own = Dataset.load(root / "shared"), Dataset.load(root / "own")
        models = build_model(config, shared, ranks), build_model(config, own, ranks)
        values = [model.state_dict() for model in models]
        for name, value in values[0].items():
            if not name.startswith(TABLES):
                values[1][name].copy_(value)
                continue
            rows = torch.from_numpy(row_of(shared, name.split(".")[-2]))
            mine, theirs = (each[name].local_shards()[0].tensor for each in values)
            theirs[:-1] = mine[rows]
            theirs[-1] = mine[-1]
        yield tuple((m, d, ranks) for m, d in zip(models, (shared, own), strict=True))
        del models, values, mine, theirs, value


def tables_of(model: Any) -> dict[str, torch.Tensor]:
    return {
        name.split(".")[-2]: value.local_shards()[0].tensor.clone()
        for name, value in model.state_dict().items()
        if name.startswith(TABLES)
    }


def batches(given: Any, config: Config, steps: int) -> list[Any]:
    model, data, ranks = given
    stream = iter(build_loader(config, data, model.module.inputs, ranks, None))
    found = [next(stream) for _ in range(steps)]
    stream.close()
    return found


def test_a_batch_holds_rows_of_tables_and_its_masks_hold_items(root: Path) -> None:
    shared, own = (Dataset.load(root / name) for name in ("shared", "own"))
    keys = {"query_keys": ("user", "history", "history@0"), "local_batch_size": 64}
    streams = [iter(Loader(each, extra_candidates=8, **keys)) for each in (shared, own)]
    rows = {side: row_of(shared, side) for side in ("user", "item")}
    for _ in range(3):
        one, two = (next(stream) for stream in streams)
        assert torch.equal(one.item_S, two.item_S) and torch.equal(one.user_B, two.user_B)
        assert torch.equal(one.count_S, two.count_S) and two.history_V is None
        assert torch.equal(one.history_V, two.features["history"].values())
        for key in ("user", "history", "history@0", "item"):
            side = "user" if key == "user" else "item"
            ids = two.features[key].values().numpy()
            assert one.features[key].values().tolist() == rows[side][ids].tolist()
            assert torch.equal(one.features[key].lengths(), two.features[key].lengths())
    for stream in streams:
        stream.close()


MODELS: dict[str, dict[str, Any]] = {
    "mf": {},
    "places": {"tower": "history", "history_pooling": "places", "sequence_length": 3},
    "apart": {"shared_item_table": False},
}


@pytest.mark.parametrize("tower", MODELS)
def test_it_does_what_equal_rows_do(tower: str, root: Path) -> None:
    """Loss by loss, each row of a table then having moved by the sum of what its ids would."""
    masks = {"mask_history": tower != "places"}
    config = config_of(model=MODELS[tower], loss=masks, negatives={"log_q": "counts"})
    with both(root, config) as pair:
        before = [tables_of(model) for model, *_ in pair]
        steps = [batches(each, config, 1) for each in pair]
        for one, two in zip(*steps, strict=True):
            found = []
            for (model, *_), batch in zip(pair, (one, two), strict=True):
                model.train()
                value, _ = model(batch)
                value.backward()
                found.append(value.item())
            assert found[0] == pytest.approx(found[1], rel=1e-5)
        for name, mine in tables_of(pair[0][0]).items():
            theirs = tables_of(pair[1][0])[name] - before[1][name]
            moved = torch.zeros_like(mine)
            moved.index_add_(0, torch.from_numpy(row_of(pair[0][1], name)), theirs[:-1])
            assert moved.abs().max() > 0
            torch.testing.assert_close(mine - before[0][name], moved, rtol=1e-3, atol=1e-6)


def test_it_ranks_as_equal_rows_do(root: Path) -> None:
    config = config_of()
    with both(root, config) as pair:
        found = []
        for model, data, ranks in pair:
            model.eval()
            found.append(evaluate_model(model.module, data, "test", ranks, (5, 20)).values)
        items = [Encoder(m.module, d, r).candidates(np.arange(d.num_items)) for m, d, r in pair]
        torch.testing.assert_close(*items)
    assert found[0] == pytest.approx(found[1]) and found[0]["recall@20"] > 0


def test_two_ranks_train_what_one_does(root: Path, tmp_path: Path) -> None:
    config = config_of(
        model={"spectral_start": 1.0, "id_dropout": 0.2}, optimizer={"tables": "rowwise_adagrad"}
    )
    for ranks in (1, 2):
        spec = RunSpec("ml-100k", config, str(root / "shared"), str(tmp_path / str(ranks)))
        train(spec, ranks)
    one, two = (losses(tmp_path / ranks) for ranks in "12")
    assert len(one) > 4 and one == pytest.approx(two, rel=1e-4)


def test_shared_rows_begin_at_the_mean_of_their_spectra(root: Path) -> None:
    config = config_of(model={"spectral_start": 1.0, "init_std": 1e-6, "similarity": "cosine"})
    with process_group() as ranks:
        shared, own = (Dataset.load(root / name) for name in ("shared", "own"))
        models = [build_model(config, each, ranks) for each in (shared, own)]
        one, two = (tables_of(model) for model in models)
        del models
    for side in ("user", "item"):
        rows = row_of(shared, side)
        for row in range(shared.rows_of_table(side)):
            mean = two[side][:-1][rows == row].mean(0)
            torch.testing.assert_close(one[side][row], mean, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    config = config_of(checkpoint={"every_steps": 2, "keep": 9})
    run_worker(RunSpec("ml-100k", config, str(root / "shared"), str(out)), Notes())
    return out


@pytest.fixture(scope="module")
def grown(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(root / "shared", folder / "data")
    return make(root / "new.parquet", folder / "data", append=True)


def test_programs_encode_as_the_model_does(root: Path, finished: Path, tmp_path: Path) -> None:
    export(ExportArguments(str(finished), str(tmp_path / "out"), users=False))
    program = torch.export.load(tmp_path / "out/item_encoder.pt2").module()
    query = torch.export.load(tmp_path / "out/query_encoder.pt2").module()
    with process_group() as ranks:
        trained = load_run(finished, ranks)
        encoder, data = Encoder.of_run(trained, ranks), trained.dataset
        ids = np.arange(data.num_items)
        expected = encoder.candidates(ids)
        lists = ItemLists.from_lists([[n % 7, n % 5] for n in range(data.num_users)])
        nobody = ItemLists.from_lists([[]] * data.num_users)
        asked = encoder.queries(torch.arange(data.num_users), lists, nobody)
        del trained, encoder
    torch.testing.assert_close(program({"item": torch.from_numpy(ids)[:, None]}), expected)
    history = torch.tensor([[n % 7, n % 5] for n in range(data.num_users)])
    users = torch.arange(data.num_users)[:, None]
    torch.testing.assert_close(query({"user": users, "history": history}), asked)
    assert (program({"item": torch.tensor([[10**9], [-1]])}) == 0).all()


def test_on_data_that_grew_rows_keep_their_values(
    root: Path, finished: Path, grown: Dataset, tmp_path: Path
) -> None:
    """Those of single ids and the shared ones alike, whoever got a row of its own meanwhile."""
    out, old = tmp_path / "run", Dataset.load(root / "shared")
    config = config_of(checkpoint={"every_steps": 2, "keep": 9}, training={"max_steps": 3})
    spec = RunSpec("ml-100k", config, grown.path, str(out), start_from=str(finished))
    notes = Notes()
    run_worker(spec, notes)
    end, begin = (
        load_file(folder / rank_file(0))
        for folder in (checkpoints(finished)[-1], checkpoints(out)[0])
    )
    for side in ("user", "item"):
        then, now = old.rows_of_table(side), grown.rows_of_table(side)
        assert then < now and grown.notes[f"{side}s_with_a_row_of_their_own_now"]
        assert f"{then:,} of {now:,} rows" in "\n".join(notes.said)
        name = f"model.{TABLES}{side}.weight"
        assert torch.equal(begin[name][:then], end[name][:then])


def test_a_run_goes_on_and_is_evaluated_on_data_that_grew(
    root: Path, finished: Path, grown: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    then, now = row_of(Dataset.load(root / "shared"), "item"), row_of(grown, "item")
    admitted = np.flatnonzero(then != now[: len(then)])
    assert len(admitted) == grown.notes["items_with_a_row_of_their_own_now"]
    with process_group() as ranks:
        trained = load_run(out, ranks, grown.path)
        model = trained.model
        assert 0 < evaluate_model(model, grown, "test", ranks, (20,)).values["recall@20"] < 1
        assert not int(model.unknown_ids["item"])
        before = load_run(out, ranks)
        one, two = (Encoder.of_run(each, ranks).candidates(admitted) for each in (before, trained))
        torch.testing.assert_close(one, two)  # until the run goes on they are what they were in it
        del model, trained, before
    last = max(losses(out))
    config = config_of(training={"max_steps": last + 2, "epochs": 2})
    run_worker(RunSpec("ml-100k", config, grown.path, str(out), resume=True), Notes())
    assert max(losses(out)) == last + 2
