"""evaluate, recommend, similar and export on a run trained for a few steps."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.datasets import make_dataset
from tests.definitions import by_user, events_of
from tests.retrieval.ranks import run_on_ranks
from trainer.base.mistake import Mistake
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks, process_group
from trainer.files.storage import storage_path
from trainer.files.whole_folder import whole_folder
from trainer.launch.here import Here
from trainer.model.trained import load_run
from trainer.observe.progress import SilentProgress
from trainer.retrieval import evaluate_run
from trainer.retrieval import export as export_module
from trainer.retrieval.arguments import (
    EvaluateArguments,
    ExportArguments,
    RecommendArguments,
    SimilarArguments,
)
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate_run import evaluate
from trainer.retrieval.export import export
from trainer.retrieval.index import build_index, index_recall
from trainer.retrieval.known import known_users
from trainer.retrieval.names import find_rows
from trainer.retrieval.recommend import recommend, similar
from trainer.retrieval.search.item_lists import ItemLists
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")


def tiny_config() -> Config:
    config = find_preset("ml-100k")
    return replace(
        config,
        model=replace(config.model, dim=8, output_dim=12, hidden=(16,)),
        training=replace(config.training, global_batch_size=128, max_steps=4),
        metrics=replace(config.metrics, enabled=False),
    )


def train_on(ranks: Ranks, data: str, out: str) -> None:
    without = replace(tiny_config(), model=replace(tiny_config().model, use_history=False))
    run_worker(RunSpec("ml-100k", tiny_config(), data, f"{out}/run"), SilentProgress())
    run_worker(RunSpec("ml-100k", without, data, f"{out}/no-history"), SilentProgress())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands")
    make_dataset(path / "data", users=50, items=40, rows=900)
    run_on_ranks(train_on, (1,), (str(path / "data"), str(path)), path)
    return path


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    export(ExportArguments(str(folder / "run"), str(folder / "out"), index="hnsw", index_k=5))
    return folder / "out"


def test_evaluate_writes_each_split_beside_the_baseline(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(folder / "run")
    evaluate(EvaluateArguments(run, k=(5, 10)))
    test = evaluate(EvaluateArguments(run, split="test", k=(10,), users=20))
    written = json.loads((folder / "run/evaluation.json").read_text())
    assert written["test"] == test and set(written) == {"validation", "test"}
    assert 0 < written["validation"]["recall@10"] <= 1
    assert 0 < written["validation"]["popularity"]["ndcg@5"] <= 1
    assert written["test"]["interval_95"]["recall@10"] > 0
    assert written["test"]["users"] == 20
    assert "popularity ranking" in capsys.readouterr().out


def must_not_start(*arguments: object) -> None:
    raise AssertionError("workers were started")


def test_evaluate_takes_the_usual_cut_offs_as_far_as_there_are_items(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(EvaluateArguments(str(folder / "run")))
    assert {name for name in found if name.startswith("recall")} == {"recall@10", "recall@20"}
    assert "the catalog has 40 items: cut-offs 10, 20" in capsys.readouterr().err


def test_what_can_be_known_before_the_work_is_told_before_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Here, "run", must_not_start)
    run, copy = str(folder / "run"), tmp_path / "run"
    with pytest.raises(Mistake, match=r"k is 10, 41; .* at most 40"):
        evaluate(EvaluateArguments(run, k=(10, 41)))
    with pytest.raises(Mistake, match=r"k is .*at most 40"):
        evaluate(EvaluateArguments(run, k=(1 << 62,)))
    copy.mkdir()
    shutil.copy(folder / "run/config.json", copy)
    for damaged in ("", "{", "[]", "3", "[" * 100_000, "\xff"):
        (copy / "evaluation.json").write_text(damaged, encoding="latin-1")
        with pytest.raises(Mistake, match=r"evaluation.json (is|holds) no "):
            evaluate(EvaluateArguments(str(copy)))
    (copy / "evaluation.json").unlink()
    os.mkfifo(copy / "evaluation.json")
    with pytest.raises(Mistake, match=r"evaluation.json (is|holds) no "):
        evaluate(EvaluateArguments(str(copy)))


def test_figures_are_shown_where_they_cannot_be_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate_run, "write_json", full)
    with pytest.raises(Mistake, match=r"not kept: .*evaluation.json .*No space left"):
        evaluate(EvaluateArguments(str(folder / "run"), k=(5,)))
    assert "popularity ranking" in capsys.readouterr().out


def test_recommend_to_a_user_leaves_out_what_it_has_seen(folder: Path) -> None:
    found = recommend(RecommendArguments(str(folder / "run"), user="1007", k=8))
    assert len(found.items) == 8 and found.scores == sorted(found.scores, reverse=True)
    dataset = Dataset.load(folder / "data")
    own = by_user(events_of(dataset))[7]
    assert {each.split for each in own} == {*dataset.splits}
    assert {item.row for item in found.items}.isdisjoint(each.item for each in own)
    liked = [each.item for each in own if each.feedback == 1]
    assert [item.row for item in found.history] == liked[-dataset.history_length :][::-1]
    assert found.items[0].label == f"Item {found.items[0].row} (i{found.items[0].row})"


def test_recommend_to_somebody_new_by_items(folder: Path) -> None:
    found = recommend(RecommendArguments(str(folder / "run"), items="i3, i8", k=40))
    assert [item.raw_id for item in found.history] == ["i8", "i3"]
    assert len(found.items) == 38 and not {3, 8} & {item.row for item in found.items}


def test_similar_is_the_cosine_of_item_embeddings(folder: Path, exported: Path) -> None:
    found = similar(SimilarArguments(str(folder / "run"), item="i5", k=4))
    embedding = np.load(exported / "items/vectors.npy")
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    cosine = unit @ unit[5]
    cosine[5] = -np.inf
    assert [item.row for item in found.items] == np.argsort(-cosine)[:4].tolist()
    assert found.scores == pytest.approx(np.sort(cosine)[::-1][:4].tolist(), abs=1e-5)


def test_export_holds_what_the_model_computes(folder: Path, exported: Path) -> None:
    """Parquet, tower programs and encoder programs all agree with the trained model."""
    facts = json.loads((exported / "bundle.json").read_text())
    with process_group() as ranks:
        trained = load_run(folder / "run", ranks)
        encoder = Encoder(trained.model, trained.dataset, ranks)
        (known,) = known_users(trained.dataset, 0, 50, block_size=50)
        item = encoder.candidates(np.arange(40))
        query = encoder.queries(torch.arange(50), known.history, known.disliked)
        ids = padded_ids(encoder, facts, known.history)
        del trained, encoder
    for name, expected in (("items", item), ("users", query)):
        found = np.load(exported / name / "vectors.npy")
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    titles = pa.ipc.open_file(pa.memory_map(str(exported / "items/ids.arrow"))).read_all()
    assert titles.column("title")[3].as_py() == "Item 3"
    for side, expected in (("item", item), ("query", query)):
        program = torch.export.load(exported / f"{side}_encoder.pt2").module()
        torch.testing.assert_close(program(ids[side]), expected, rtol=1e-5, atol=1e-6)
        stranger = {key: value.clone() for key, value in ids[side].items()}
        stranger["item" if side == "item" else "user"][3] = 10**9
        assert bool(program(stranger).isfinite().all())
        one = {key: value[:1] for key, value in ids[side].items()}
        torch.testing.assert_close(program(one), expected[:1], rtol=1e-5, atol=1e-6)


def padded_ids(encoder: Encoder, facts: dict, history: ItemLists) -> dict[str, dict]:
    """Ids of all users and items, [n, L] a key, padded with -1."""

    def padded(values: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        lists = np.split(values, np.cumsum(lengths)[:-1])
        width = max(map(len, lists))
        rows = [np.pad(row, (0, width - len(row)), constant_values=-1) for row in lists]
        return torch.from_numpy(np.stack(rows))

    sides = {"query": ("query_keys", 50), "item": ("candidate_keys", 40)}
    return {
        side: {
            key: padded(
                *(history.bags() if key == "history" else encoder.store.bags(key, np.arange(n)))
            )
            for key in facts[keys]
        }
        for side, (keys, n) in sides.items()
    }


def test_tower_program_equals_the_tower(folder: Path, exported: Path) -> None:
    with process_group() as ranks:
        trained = load_run(folder / "run", ranks)
        tower = trained.model.head.towers.candidate
        pooled = torch.randn(7, len(trained.model.inputs.candidate_keys), 8)
        with torch.no_grad():
            expected = tower(list(pooled.unbind(1)))
        del trained
    program = torch.export.load(exported / "item_tower.pt2").module()
    torch.testing.assert_close(program(pooled), expected)
    torch.testing.assert_close(program(pooled[:1]), expected[:1], rtol=1e-5, atol=1e-6)


def test_the_examples_of_the_page_on_serving_run(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    engines = page.index("\n### DuckDB with VSS\n"), page.index("\n## The programs\n")
    page = page[: engines[0]] + page[engines[1] :]  # see tests/engines
    opening, search, rows, by_sql, encode = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(exported.parent)
    (exported.parent / "VECTORS").symlink_to(exported)
    names: dict = {"USER": 1003, "LIKED": [3, 5, -1]}
    exec(opening, names)
    assert names["first"][:2] == ("i0", "Item 0")
    exec(search, names)
    told = recommend(RecommendArguments("VECTORS", user="1003"))
    assert names["answer"] == [item.raw_id for item in told.items]
    exec(rows, names)
    exec(by_sql, names)
    assert [ids[0] for ids in names["by_duckdb"]] == names["answer"]
    exec(encode, names)
    assert (names["position"] >= 0).all()
    facts = json.loads((exported / "bundle.json").read_text())
    asked = facts["programs"]["query_encoder"]["input"]
    assert asked["user"] == "int64 [n, 1]" and asked["history"] == "int64 [n, L]"


def test_export_says_how_its_files_are_called(exported: Path) -> None:
    facts = json.loads((exported / "bundle.json").read_text())
    index, programs = facts["index"], facts["programs"]
    assert index["metric"] == "inner product" and index["none_found"] == -1
    assert "item row" in index["position"] and index["seen_items_removed"] is False
    assert faiss.read_index(str(exported / index["file"])).metric_type == faiss.METRIC_INNER_PRODUCT
    for name, each in programs.items():
        program = torch.export.load(exported / f"{name}.pt2").module()
        sizes = {"n": 2, "L": 3}
        if name.endswith("tower"):
            given = torch.randn(shape_of(each["input"], sizes))
            assert given.shape[1] == len(each["features"])
        else:
            given = {
                key: torch.zeros(shape_of(s, sizes)).long() for key, s in each["input"].items()
            }
        assert program(given).shape == shape_of(each["output"], sizes)


def shape_of(text: str, sizes: dict[str, int]) -> tuple[int, ...]:
    parts = text.partition("[")[2].removesuffix("]").split(", ")
    return tuple(sizes.get(part) or int(part) for part in parts)


def test_export_is_whole_or_not_at_all_and_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two exports to one OUT mixed their files; OUT.partial was deleted, whosever it was."""
    arguments = ExportArguments(str(folder / "run"), str(tmp_path / "out"))
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").touch()
    with monkeypatch.context() as patched:
        patched.setattr(Here, "run", must_not_start)
        with whole_folder(arguments.out), pytest.raises(Mistake, match="by another command"):
            export(arguments)
        (tmp_path / "out").rmdir()
    with monkeypatch.context() as patched:
        patched.setattr(export_module, "write_users", must_not_start)
        with pytest.raises(AssertionError, match="were started"):
            export(arguments)
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == [
        "out.partial",
        "out.partial/mine",
    ]


def test_an_export_to_an_object_store_is_the_same(folder: Path, exported: Path) -> None:
    there = storage_path("memory://exported/out")
    arguments = ExportArguments(str(folder / "run"), str(there))
    export(arguments)
    facts, local = (json.loads((each / "bundle.json").read_text()) for each in (there, exported))
    changed = {"index", "files", "digest"}
    assert {k: v for k, v in facts.items() if k not in changed} == {
        k: v for k, v in local.items() if k not in changed
    }
    for name in facts["files"]:
        if not name.endswith(".pt2"):  # which hold the time
            assert (there / name).read_bytes() == (exported / name).read_bytes(), name
    with pytest.raises(Mistake, match="memory://exported/out exists already"):
        export(arguments)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_index_finds_what_exact_search_finds(kind: str, tmp_path: Path, exported: Path) -> None:
    index = build_index(kind, exported, 40, 12)  # type: ignore[arg-type]
    users = torch.from_numpy(np.load(exported / "users/vectors.npy"))
    recall = index_recall(index, exported, users, 5)
    assert recall == 1.0  # so few items that ivf searches every list
    assert faiss.read_index(str(exported / "items.faiss")).ntotal == 40


def test_mistakes_name_the_value_and_the_remedy(folder: Path, exported: Path) -> None:
    run, data = str(folder / "run"), Dataset.load(folder / "data")
    with pytest.raises(ValueError, match="no user 999 in"):
        recommend(RecommendArguments(run, user="999"))
    with pytest.raises(ValueError, match="user 'anna': the ids of this dataset are whole numbers"):
        find_rows(data, "user", ["anna"])
    with pytest.raises(ValueError, match=r"no item 'i33x'.*did you mean i33"):
        find_rows(data, "item", ["i33x"])
    without = recommend(RecommendArguments(str(folder / "no-history"), items="i1"))
    assert "reads no histories" in (without.note or "") and len(without.items) == 10
    with pytest.raises(ValueError, match="either --user ID or --items"):
        RecommendArguments(run)
    with pytest.raises(ValueError, match="-k 0: must be at least 1"):
        SimilarArguments(run, item="i1", k=0)
    with pytest.raises(ValueError, match="exists already: remove it, or name another"):
        export(ExportArguments(run, str(exported)))
    with pytest.raises(ValueError, match=r"nosuch://b/x: .*give a folder, or for example s3://"):
        export(ExportArguments(run, "nosuch://b/x"))
    with pytest.raises(ValueError, match=r"is no run: it has no config.json"):
        evaluate(EvaluateArguments(str(folder / "data")))
    with pytest.raises(ValueError, match="--workers 0"):
        evaluate(EvaluateArguments(run, workers=0))
