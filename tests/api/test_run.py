"""A run in memory: what it says is what the commands say, and its model is read once."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

import tandem
from tests.datasets import make_dataset
from tests.retrieval.test_commands import tiny_config
from trainer.api.data_frames import quoted
from trainer.api.run import close_all
from trainer.base.mistake import Mistake
from trainer.retrieval import opened
from trainer.retrieval.arguments import EvaluateArguments, RecommendArguments, SimilarArguments
from trainer.retrieval.evaluate_run import evaluate
from trainer.retrieval.names import split_ids
from trainer.retrieval.recommend import recommend, similar

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tandem.Run]:
    folder = tmp_path_factory.mktemp("api")
    data = make_dataset(folder / "data", users=50, items=40, rows=900)
    yield tandem.train(tiny_config(), data=data, out=folder / "run", overrides={"loss.name": "bsl"})
    close_all()
    assert not dist.is_initialized()


def test_training_here_says_what_it_did(run: tandem.Run) -> None:
    assert run.summary["steps"] == run.step == 4
    assert run.config.loss.name == "bsl" and run.dataset.num_users == 50
    assert repr(run) == f"tandem.load({run.path!r})"


def test_threads_are_as_before(run: tandem.Run, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    threads = {"training.threads": before + 1, "training.max_steps": 1}
    tandem.train(run.config, data=run.dataset, out=tmp_path / "run", overrides=threads)
    assert torch.get_num_threads() == before


def test_the_model_is_read_once(run: tandem.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    again, loads = tandem.load(run.path), []
    run.similar("i3")  # makes the bundle, which takes the model
    load_run = opened.load_run

    def counted(*arguments: Any) -> Any:
        loads.append(arguments)
        return load_run(*arguments)

    monkeypatch.setattr(opened, "load_run", counted)
    assert again.recommend(user=1007, k=3) == again.recommend(user="1007", k=3)
    again.similar("i3")
    assert not loads, "answers come from the bundle"
    again.evaluate(k=[5])
    again.encode_queries(["1007"])
    assert len(loads) == 1
    again.close()
    again.evaluate(k=[5])
    assert len(loads) == 2


def test_answers_are_those_of_the_commands(run: tandem.Run) -> None:
    told = recommend(RecommendArguments(run.path, user="1007", k=4))
    found = run.recommend(user=1007, k=4)
    assert [each.item for each in found] == [item.raw_id for item in told.items]
    assert [each.score for each in found] == pytest.approx(told.scores)
    told = similar(SimilarArguments(run.path, item="i3", k=4))
    assert [each.item for each in run.similar("i3", k=4)] == [item.raw_id for item in told.items]
    measured = evaluate(EvaluateArguments(run.path, k=(5, 10)))
    found = run.evaluate(k=[5, 10])
    for name in ("recall@5", "ndcg@10", "users", "popularity", "unknown_ids"):
        assert found[name] == measured[name], name


def test_somebody_new_is_known_by_items(run: tandem.Run) -> None:
    told = recommend(RecommendArguments(run.path, items="i3,i8", k=4))
    assert [i.item for i in run.recommend(items=["i3", "i8"], k=4)] == [
        i.raw_id for i in told.items
    ]
    with pytest.raises(Mistake, match="give a list of ids"):
        run.recommend(items="i3,i8")


@pytest.mark.parametrize("ids", [["i1"], ["Doe, Jane", 'say "x"', "5"], [3, 8]])
def test_ids_are_quoted_as_the_flag_wants_them(ids: list[Any]) -> None:
    assert [each[0] for each in split_ids(quoted(ids))] == [str(each) for each in ids]


def test_tables_where_they_are_asked_for(run: tandem.Run) -> None:
    found = run.recommend(user=1007, k=4)
    as_pandas = run.recommend(user=1007, k=4, to="pandas")
    assert list(as_pandas.columns) == ["item", "title", "score"]
    assert list(as_pandas.item) == [each.item for each in found]
    as_arrow = run.recommend(user=1007, k=4, to="pyarrow")
    assert as_arrow.column("score").to_pylist() == [each.score for each in found]
    with pytest.raises(Mistake, match="to='xml': must be one of list, pandas, pyarrow"):
        run.recommend(user=1007, to="xml")  # type: ignore[arg-type]


def vectors(table: pa.Table) -> np.ndarray:
    return np.stack(table.column("embedding").combine_chunks().to_numpy(zero_copy_only=False))


def test_queries_are_scored_against_items(run: tandem.Run) -> None:
    """The embeddings that are given out, multiplied, are the scores that `recommend` gives."""
    items, users = run.items(), run.users()
    queries = run.encode_queries(["1007", 1003, 1007])
    assert queries.shape == (3, run.config.model.width) and queries.dtype == np.float32
    np.testing.assert_allclose(queries, vectors(users)[[7, 3, 7]], rtol=1e-5)
    score = dict(zip(items.column("raw_id").to_pylist(), vectors(items) @ queries[0], strict=True))
    for each in run.recommend(user=1007, k=5):
        assert score[each.item] == pytest.approx(each.score, rel=1e-5)
    new = run.encode_queries(histories=[["i3", "i8"], []])
    (best,) = run.recommend(items=["i3", "i8"], k=1)
    assert new[0] @ vectors(items)[int(str(best.item)[1:])] == pytest.approx(best.score, rel=1e-5)
    with pytest.raises(Mistake, match="give either users or histories"):
        run.encode_queries()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda run: run.recommend(user="nobody"), "user 'nobody': the ids of this dataset are"),
        (lambda run: run.recommend(), "give either --user ID or --items"),
        (lambda run: run.similar(4711), "no item '4711' in"),
        (lambda run: run.evaluate("tset"), "split='tset': did you mean 'test'"),
        (lambda run: run.evaluate(k=[0]), "--k 0: must be"),
        (lambda run: run.encode_queries([4711]), "no user 4711 in"),
        (lambda run: tandem.load(run.path + "x"), "is no run"),
        (lambda run: tandem.load(run.path, data="none").step, "none is no prepared dataset"),
        (lambda run: tandem.train("gowala", data="d", out="o"), "did you mean 'gowalla'"),
        (
            lambda run: tandem.train("demo", data="d", out="o", overrides={"los.name": "bsl"}),
            "unknown setting 'los.name': did you mean 'loss.name'",
        ),
        (
            lambda run: tandem.train("demo", data="d", out="o", overrides={"loss.name": "bls"}),
            "loss.name='bls': did you mean 'bsl'",
        ),
        (
            lambda run: tandem.train("demo", data="d", out="o", workers=2, max_failure=1),
            "did you mean 'max_failures'",
        ),
        (
            lambda run: tandem.train("demo", data="d", out="o", max_failures=1),
            "give workers or address too",
        ),
        (lambda run: tandem.train("demo", data="none", out="o"), "none is no prepared dataset"),
        (lambda run: tandem.train(run.config, data=run.dataset, out=run.path), "exists already"),
    ],
)
def test_mistakes_are_the_command_lines(run: tandem.Run, ask: Any, words: str) -> None:
    with pytest.raises(tandem.Mistake) as told:
        ask(run)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_what_nothing_is_known_of_warns(run: tandem.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = run._answering()
    monkeypatch.setattr(bundle, "user_known_U", np.zeros(50, dtype=bool))
    with pytest.warns(UserWarning, match="these are the most popular items"):
        assert len(run.recommend(user=1007, k=3)) == 3


def test_it_trains_outside_the_main_thread_too(run: tandem.Run, tmp_path: Path) -> None:
    made: list[tandem.Run] = []

    def work() -> None:
        made.append(tandem.train(run.config, data=run.dataset, out=tmp_path / "run"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made[0].summary["steps"] == 4


def test_a_run_is_gone_on_with(run: tandem.Run, tmp_path: Path) -> None:
    data, out = run.dataset, tmp_path / "run"
    tandem.train(run.config, data=data, out=out, overrides={"training.max_steps": 2})
    further = tandem.train(run.config, data=data, out=out, resume=True)
    assert further.summary["steps"] == 4


def test_a_run_starts_from_another(run: tandem.Run, tmp_path: Path) -> None:
    few = {"training.max_steps": 1}
    kept = {"data": run.dataset, "overrides": few, "start_from": run.path}
    later = tandem.train(run.config, out=tmp_path / "run", **kept)
    assert later.summary["steps"] == 1
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert facts["start_from"]["run"] == str(run.path)
