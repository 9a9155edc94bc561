"""Items and users that training never met: zeros in the tables, in no ranking, said and counted."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.planted import interactions, make, table
from tests.test_training import small_config
from trainer.data.schema import Dataset
from trainer.data.trained_rows import trained_rows
from trainer.distributed.ranks import process_group
from trainer.model.build import build_model
from trainer.model.trained import load_run
from trainer.observe.progress import SilentProgress
from trainer.retrieval.arguments import (
    EvaluateArguments,
    ExportArguments,
    RecommendArguments,
    SimilarArguments,
)
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import evaluate_split
from trainer.retrieval.evaluate_run import evaluate
from trainer.retrieval.export import export
from trainer.retrieval.index import build_index, index_recall
from trainer.retrieval.measures.popularity import PopularityRanking
from trainer.retrieval.queries import read_queries
from trainer.retrieval.recommend import recommend, similar
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")

USERS, ITEMS, NEVER = 40, 30, 8
"""Items 30..37 stand in the side file alone, users 40..42 in held-out parts, where 43 and 44
disliked an item, so that nothing is known of them even now."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Given splits: item 29 is liked in validation and test alone, item 28 only disliked."""
    folder = tmp_path_factory.mktemp("never")
    draw = np.random.default_rng(3)
    splits: dict[str, list[str]] = {name: ["user,item,rating"] for name in SPLITS}
    for user in range(USERS):
        items = draw.choice(ITEMS - 2, 12, replace=False, p=weights())
        for place, item in enumerate(items):
            name = SPLITS[min(max(place - 7, 0) // 2, 2)]
            splits[name].append(f"{user},{item},{1 if place == 3 else 5}")
        splits["train"].append(f"{user},28,1")
        splits["validation" if user < 5 else "test"].append(f"{user},29,5")
    splits["test"] += [f"{USERS},3,5", f"{USERS + 1},4,5", f"{USERS + 1},29,5"]
    splits["validation"] += [f"{USERS + 2},5,5", f"{USERS + 3},28,1", f"{USERS + 4},28,1"]
    for name, lines in splits.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    side = ["item,genre"] + [f"{item},g{item % 4}" for item in range(ITEMS + NEVER - 2)]
    side += [f"{ITEMS + NEVER - 2},g9", f"{ITEMS + NEVER - 1},"]  # a value nobody met, and none
    (folder.parent / "items.csv").write_text("\n".join(side) + "\n")
    return folder


SPLITS = ("train", "validation", "test")


def weights() -> np.ndarray:
    weight = 1 / np.arange(1, ITEMS - 1)
    return weight / weight.sum()


@pytest.fixture(scope="module")
def dataset(source: Path) -> Dataset:
    return make(
        source, source.parent / "D", items=str(source.parent / "items.csv"), history_length=5
    )


def config_of(**model: Any) -> Any:
    plain = {"user_attributes": False, "item_attributes": False, **model}
    return small_config(
        model=plain,
        negatives={"uniform": 32},
        optimizer={"table_learning_rate": 0.3},
        training={"epochs": 4},
    )


TOWERS: dict[str, dict[str, Any]] = {
    "mf": {"tower": "mf"},
    "mlp": {"tower": "mlp"},
    "history": {"tower": "history", "use_history": False, "spectral_start": 1.0},
}


@pytest.fixture(scope="module")
def run_of(dataset: Dataset) -> Callable[[str], str]:
    """Trains each kind once."""
    kinds = {**TOWERS, "attributes": {"tower": "mlp", "item_attributes": True}}
    done: dict[str, str] = {}

    def trained(kind: str) -> str:
        if kind not in done:
            done[kind] = f"{Path(dataset.path).parent}/{kind}"
            run_worker(
                RunSpec("ml-100k", config_of(**kinds[kind]), dataset.path, done[kind]),
                SilentProgress(),
            )
        return done[kind]

    return trained


def raw_rows(dataset: Dataset, side: str) -> dict[Any, int]:
    return {row["raw_id"]: row[side] for row in table(dataset, f"{side}s")}


@pytest.mark.parametrize("splits", [("train",), ("train", "validation")])
@pytest.mark.parametrize("with_disliked", [False, True])
def test_trained_rows_are_those_of_the_files(
    dataset: Dataset, splits: tuple[str, ...], with_disliked: bool
) -> None:
    rows = [row for split in splits for row in interactions(dataset, split)]
    rows = [row for row in rows if with_disliked or row["feedback"] == 1]
    found = trained_rows(dataset, ("user", "item", "item.genre"), splits, with_disliked)
    for side, size in (("user", dataset.num_users), ("item", dataset.num_items)):
        assert len(found[side]) == size
        assert set(np.flatnonzero(found[side])) == {row[side] for row in rows}
    genres = {row["item"]: row["genre"] for row in table(dataset, "items")}
    assert set(np.flatnonzero(found["item.genre"])) == {genres[row["item"]] for row in rows}


@pytest.mark.parametrize("kind", TOWERS)
def test_their_rows_are_zeros_and_they_are_in_no_ranking(
    dataset: Dataset, run_of: Callable[[str], str], kind: str
) -> None:
    count_I = np.array([row["count"] for row in table(dataset, "items")])
    count_U = np.array([row["count"] for row in table(dataset, "users")])
    assert (count_I == 0).sum() >= NEVER + 2 and (count_U == 0).sum() == 5
    with process_group() as ranks:
        trained = load_run(run_of(kind), ranks)
        for name, count in (("item", count_I), ("user", count_U)):
            weight = trained.model.embeddings.state_dict()[f"embedding_bags.{name}.weight"]
            rows = weight.local_shards()[0].tensor[:-1]
            assert ((rows == 0).all(1).numpy() == (count == 0)).all()
        encoder = Encoder.of_run(trained, ranks)
        items = encoder.items()
        assert items.unranked_X is not None
        assert items.unranked_X.tolist() == np.flatnonzero(count_I == 0).tolist()
        found = evaluate_split(encoder, dataset, "test", (5, dataset.num_items))
        (block,) = read_queries(dataset, "test", np.arange(found.num_queries), 100)
        query_QD = encoder.queries(block.user_Q, block.history, block.disliked)
        score_QI = (query_QD @ items.embedding_ID.T).numpy()
        del trained, encoder, items
        gc.collect()
    popular = PopularityRanking(torch.from_numpy(count_I)).topk(block.seen, 5).tolist()
    recalls, reachable, unknown = [], [], 0
    for place, user in enumerate(block.user_Q.tolist()):
        start, stop = block.targets.offsets[place : place + 2].tolist()
        targets = set(block.targets.values[start:stop].tolist())
        start, stop = block.seen.offsets[place : place + 2].tolist()
        seen = set(block.seen.values[start:stop].tolist())
        order = sorted(range(len(count_I)), key=lambda item: -score_QI[place, item])
        best = [item for item in order if count_I[item] and item not in seen][:5]
        if count_U[user] == 0 and not block.history.lengths[place]:
            unknown += 1
            best = popular[place]
        recalls.append(len(targets & set(best)) / len(targets))
        reachable.append(np.mean([count_I[item] > 0 for item in targets]))
    assert found.values["recall@5"] == pytest.approx(np.mean(recalls))
    # A target that nobody was trained on counts as missed, however long the list is.
    assert found.values[f"recall@{dataset.num_items}"] <= np.mean(reachable) + 1e-9 < 1
    assert (found.unknown_items, found.unknown_queries) == ((count_I == 0).sum(), unknown)
    assert unknown == 2


def test_attributes_speak_for_items_nobody_took(
    dataset: Dataset, run_of: Callable[[str], str]
) -> None:
    """Two items of one genre are alike then; a genre that training never met says nothing."""
    row = raw_rows(dataset, "item")
    with process_group() as ranks:
        trained = load_run(run_of("attributes"), ranks)
        embedding = Encoder.of_run(trained, ranks).items().embedding_ID
        unranked = Encoder.of_run(trained, ranks).items().unranked_X
        del trained
        gc.collect()
    assert unranked is not None
    assert set(unranked.tolist()) == {row[ITEMS + NEVER - 2], row[ITEMS + NEVER - 1]}
    torch.testing.assert_close(embedding[row[30]], embedding[row[34]])
    assert (embedding[row[30]] - embedding[row[31]]).abs().max() > 0.01


def test_commands_say_so(
    dataset: Dataset, run_of: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("mlp")
    unknown = sum(row["count"] == 0 for row in table(dataset, "items"))
    record = evaluate(EvaluateArguments(run, split="test", k=(5,)))
    said = " ".join(capsys.readouterr().out.split())
    assert (record["unknown_items"], record["unknown_users"]) == (unknown, 2)
    assert f"nothing is known of {unknown} items" in said and "of 2 users" in said
    lists = [recommend(RecommendArguments(run, user=str(USERS + n), k=6)) for n in (3, 4)]
    assert "no training interaction" in capsys.readouterr().out
    assert lists[0].items == lists[1].items
    counts = {row["item"]: row["count"] for row in table(dataset, "items")}
    assert [counts[item.row] for item in lists[0].items] == sorted(counts.values())[:-7:-1]
    known = recommend(RecommendArguments(run, user=str(USERS - 1), k=dataset.num_items))
    assert known.note is None and all(counts[item.row] for item in known.items)
    found = similar(SimilarArguments(run, item=str(ITEMS)))
    assert not found.items and found.note and "no training interaction" in found.note
    near = similar(SimilarArguments(run, item="1", k=dataset.num_items))
    assert near.note is None and all(counts[item.row] for item in near.items)


def test_export_says_what_is_unknown(dataset: Dataset, run_of: Callable[[str], str]) -> None:
    """Unknown items are in the middle of every ranking, and not in an index at all."""
    run = run_of("mlp")
    out = Path(f"{run}-export")
    export(ExportArguments(run, str(out), index="flat", index_k=5))
    facts = json.loads((out / "bundle.json").read_text())
    embeddings, unknown = {}, {}
    for side in ("item", "user"):
        exported = out / f"{side}s"
        counts = [row["count"] for row in table(dataset, f"{side}s")]
        assert np.load(exported / "counts.npy").tolist() == counts
        embeddings[side] = np.load(exported / "vectors.npy")
        known = np.load(exported / "known.npy")
        unknown[side] = np.flatnonzero(~known)
        assert facts[f"unknown_{side}s"] == len(unknown[side])
        mean_D = embeddings[side][known].mean(axis=0)
        assert np.abs(embeddings[side][~known] - mean_D).max() < 1e-6
        if side == "item":
            assert (known == np.array([count > 0 for count in counts])).all()
    assert len(unknown["user"]) == 2
    best = (embeddings["user"] @ embeddings["item"].T).argsort(axis=1)[:, :-6:-1]
    assert not np.isin(best, unknown["item"]).any()
    num_known = facts["items"] - len(unknown["item"])
    for kind in ("flat", "ivf", "hnsw"):
        index = build_index(kind, out, num_known, facts["width"])
        _, found = index.search(embeddings["user"], 5)
        assert index.ntotal == num_known and np.isin(found, best).mean() > 0.95
        assert index_recall(index, out, torch.from_numpy(embeddings["user"]), 5) > 0.95
    assert facts["index"]["recall"] == 1
    program = torch.export.load(out / "item_encoder.pt2").module()
    with torch.no_grad():
        computed = program({"item": torch.arange(dataset.num_items).unsqueeze(1)}).numpy()
        pooled = torch.zeros(2, 1, 16)
        pooled[1] = 1
        tower = torch.export.load(out / "item_tower.pt2").module()(pooled)
    assert not computed[unknown["item"]].any() and not tower[0].any() and tower[1].any()
    computed[unknown["item"]] = embeddings["item"][unknown["item"]]
    np.testing.assert_allclose(computed, embeddings["item"], rtol=1e-5, atol=1e-6)


def test_an_item_that_is_trained_later_starts_from_its_noise(
    source: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """--extend: known rows stay, those that were zeros and are trained now wake, new ones too."""
    config = config_of(tower="mf")
    run = str(tmp_path / "run")
    run_worker(RunSpec("ml-100k", config, dataset.path, run), SilentProgress())
    new = tmp_path / "new"
    new.mkdir()
    lines = [f"{user},{item},5" for user in (0, 1, USERS) for item in (31, 50)]
    (new / "train.csv").write_text("\n".join(["user,item,rating", *lines]) + "\n")
    (new / "test.csv").write_text("user,item,rating\n2,51,5\n")
    extended = make(new, tmp_path / "extended", extend=dataset.path)
    slow = replace(config.optimizer, table_learning_rate=1e-12, tower_learning_rate=1e-12)
    spec = RunSpec("ml-100k", replace(config, optimizer=slow), extended.path, run, resume=True)
    with process_group() as ranks:
        trained = load_run(run, ranks)
        before = rows_of(trained.model)
        del trained
        gc.collect()
    run_worker(spec, SilentProgress())
    with process_group() as ranks:
        trained = load_run(run, ranks)
        after = rows_of(trained.model)
        fresh = rows_of(build_model(config, extended, ranks).module)
        del trained
        gc.collect()
    row = raw_rows(extended, "item")
    old = dataset.num_items
    known = before[:old].abs().amax(1) > 0
    torch.testing.assert_close(after[:old][known], before[:old][known], atol=1e-6, rtol=0)
    for item in (31, 50):
        assert after[row[item]].abs().max() > 0
        torch.testing.assert_close(after[row[item]], fresh[row[item]], atol=1e-6, rtol=0)
    asleep = [row[item] for item in (30, 32, 51)]
    assert not after[asleep].any() and not before[row[31]].any()


def rows_of(model: Any) -> torch.Tensor:
    weight = model.embeddings.state_dict()["embedding_bags.item.weight"]
    return weight.local_shards()[0].tensor[:-1].clone()
