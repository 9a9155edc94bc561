"""`tandem compare`: equal budgets, noise in train alone, and a page that stands on its own."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from losses import LossName
from tests.data.planted import queries
from tests.datasets import make_dataset
from tests.definitions import Query, by_user, events_of, queries_of
from tests.loader.conftest import rows_of
from trainer.base.mistake import Mistake
from trainer.compare import noise
from trainer.compare.cases import (
    MOST_TUNING_TRIALS,
    Section,
    apply,
    candidate_settings,
    make_cases,
)
from trainer.compare.comparison import _data_of, base_config, with_fitting_batch
from trainer.compare.flags import CompareArguments
from trainer.compare.html import write_page
from trainer.compare.noise import noisy_dataset
from trainer.compare.results import CaseResult, Comparison, baseline_ahead
from trainer.compare.trials import Trial, run_trial, run_trials
from trainer.compare.verdict import verdicts
from trainer.compare.working_folder import own_folder
from trainer.data.schema import Dataset
from trainer.launch.here import Here
from trainer.loader.loader import Loader
from trainer.observe.per_user import per_user_file, write_per_user
from trainer.observe.progress import SilentProgress
from trainer.retrieval.queries import LIST_COLUMNS

LOSSES: tuple[LossName, ...] = ("ssm", "sl", "bsl", "ccl", "ova", "bpr", "ntr", "ssm_ntr")
SECTIONS: tuple[Section, ...] = ("noise", "dislikes", "negatives", "hardness", "clipping")


def test_every_loss_has_as_many_settings_and_each_builds_a_config() -> None:
    base = base_config(CompareArguments("data", "out"))
    cases = make_cases(LOSSES, SECTIONS, has_feedback=True, uniform=64)
    labels = [case.label for case in cases]
    assert len(labels) == len(set(labels))
    for case in cases:
        settings = candidate_settings(case.loss, MOST_TUNING_TRIALS)
        assert len(settings) == MOST_TUNING_TRIALS
        configs = [apply(base, case, setting, seed=1) for setting in settings]
        assert len({config.digest for config in configs}) == MOST_TUNING_TRIALS
        assert all(config.loss.name == case.loss for config in configs)
        assert case.tuned_as is None or case.tuned_as in labels


def test_noise_is_in_train_alone(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=100, items=30, rows=4000, group_events=500)
    (tmp_path / "noisy").mkdir()
    noisy = noisy_dataset(dataset, tmp_path / "noisy", added=0.5, removed=0.25, seed=3)
    before, after = Counter(events_of(dataset)), Counter(events_of(noisy))
    old, new = (by_user(each) for each in (before, after))
    assert {*old} == {*new}
    told = noisy.splits["train"]
    liked = dataset.splits["train"].positives
    # Five standard deviations of a Poisson and of a binomial count.
    rows = dataset.splits["train"].rows
    assert told.rows - rows == pytest.approx(0.5 * rows, abs=5 * (0.5 * rows) ** 0.5)
    removed = told.rows - told.positives - told.disliked
    assert removed == pytest.approx(0.25 * liked, abs=5 * (0.1875 * liked) ** 0.5)
    assert told.disliked == dataset.splits["train"].disliked
    for split in ("validation", "test"):
        assert noisy.splits[split] == dataset.splits[split]
        held = [
            [(e.user, e.item, e.feedback, e.time) for e in events if e.split == split]
            for events in (before, after)
        ]
        assert held[0] == held[1]
    counts = pq.read_table(noisy.file("items.parquet"))["count"].to_pylist()
    trained = Counter(e.item for e in after if e.split == "train" and e.feedback > 0)
    assert [trained[item] for item in range(30)] == counts
    assert Dataset.load(noisy.path, verify="digest") == noisy != dataset


def test_what_noise_takes_away_stays_in_histories_and_is_not_trained_on(tmp_path: Path) -> None:
    """At a share of one: nothing liked is left to train on but what was added."""
    dataset = make_dataset(tmp_path / "data", users=40, items=30, rows=800, tied=9)
    (tmp_path / "noisy").mkdir()
    noisy = noisy_dataset(dataset, tmp_path / "noisy", added=0.0, removed=1.0, seed=3)
    assert noisy.splits["train"].positives == 0 < noisy.splits["train"].disliked
    with pytest.raises(Mistake, match="have no positive rows"):
        Loader(noisy, local_batch_size=16)
    for split in ("validation", "test"):
        assert queries_of(noisy, split) == queries_of(dataset, split)
        assert read(noisy, split) == read(dataset, split)
    rows = dict.fromkeys(("history", "disliked"))
    both = Loader(noisy, query_keys=(*rows,), feedback="all", local_batch_size=16)
    assert both.num_rows == dataset.splits["train"].disliked
    old = Loader(dataset, query_keys=(*rows,), feedback="all", local_batch_size=16)
    expected = Counter(each for each in rows_of(old.epoch(0)) if each[2] < 0)
    assert Counter(rows_of(both.epoch(0))) == expected


def test_what_noise_adds_is_random_and_stands_in_histories(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=40, items=300, rows=900, planted=1.0)
    (tmp_path / "noisy").mkdir()
    noisy = noisy_dataset(dataset, tmp_path / "noisy", added=1.0, removed=0.0, seed=3)
    times = {(each.user, each.time): each for each in events_of(dataset)}
    added = [e for e in events_of(noisy) if times[e.user, e.time].item != e.item]
    assert all(e.split == "train" and e.feedback > 0 for e in added)
    # Their items are of every cluster alike, where the data keep to the user's.
    inside = sum(e.item % 5 == e.user % 5 for e in added) / len(added)
    assert inside == pytest.approx(0.2, abs=5 * (0.16 / len(added)) ** 0.5)
    known = {(q.user, item) for q in queries_of(noisy, "test") for item in q.history}
    assert known & {(e.user, e.item) for e in added}
    assert noisy_digest(dataset, tmp_path / "again", seed=3) == noisy.digest
    assert noisy_digest(dataset, tmp_path / "other", seed=4) != noisy.digest


def noisy_digest(dataset: Dataset, out: Path, seed: int) -> str:
    out.mkdir()
    return noisy_dataset(dataset, out, added=1.0, removed=0.0, seed=seed).digest


def read(dataset: Dataset, split: str) -> list[Query]:
    """A split's queries as they are evaluated."""
    return [
        Query(row["user"], *(tuple(row[name]) for name in LIST_COLUMNS))
        for row in queries(dataset, split)
    ]


@pytest.mark.parametrize("name", ["absolute", "../mine", "events/../../mine", "..", ""])
def test_no_file_outside_the_dataset_is_copied_or_removed(name: str, tmp_path: Path) -> None:
    """Names of dataset.json were unlinked where they stood, and written to."""
    dataset = make_dataset(tmp_path / "data", users=40, items=30, rows=800)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    record = next(iter(dataset.files.values()))
    named = str(mine) if name == "absolute" else name
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    (tmp_path / "noisy").mkdir()
    foreign = replace(dataset, files={**dataset.files, named: record})
    with pytest.raises(Mistake, match=r"dataset\.json names the file"):
        noisy_dataset(foreign, tmp_path / "noisy", added=0.5, removed=0.25, seed=3)
    (window,) = dataset.windows
    window = replace(window, files=(*window.files, str(mine)))
    with pytest.raises((Mistake, OSError, ValueError)):
        noisy_dataset(
            replace(dataset, windows=(window,)),
            tmp_path / "noisy", added=0.5, removed=0.25, seed=3,
        )  # fmt: skip
    assert all(each.read_bytes() == text for each, text in before.items())


def test_noise_is_not_made_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that was cut off held the clean rows, and was taken for the noisy ones."""
    dataset = make_dataset(tmp_path / "data", users=40, items=30, rows=800)
    case = make_cases(("bpr",), ("noise",), has_feedback=True, uniform=16)[-1]
    monkeypatch.setattr(noise, "_recount", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _data_of(case, dataset, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))
    monkeypatch.undo()
    made = Dataset.load(_data_of(case, dataset, tmp_path / "out"), verify="digest")
    assert made.digest != dataset.digest
    assert _data_of(case, dataset, tmp_path / "out") == made.path


def test_a_comparison_works_in_a_folder_of_its_own(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=40, items=30, rows=800)
    out = tmp_path / "out"
    arguments = CompareArguments(dataset.path, str(out), epochs=3)
    with own_folder(arguments, dataset) as folder:
        assert folder == out
        refused(arguments, dataset, "another comparison works in")
    with own_folder(replace(arguments, workers=1), dataset):
        pass
    refused(replace(arguments, epochs=4), dataset, r"other flags \(epochs: was 3, now 4\)")
    refused(arguments, replace(dataset, digest="0" * 64), r"other flags \(dataset: was")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for taken in ("mine", "file"):
        refused(replace(arguments, out=str(tmp_path / taken)), dataset, "holds no comparison")
    (out / "comparison.json").write_text("{")
    refused(arguments, dataset, r"comparison\.json is no JSON")
    refused(replace(arguments, out="s3://bucket/out"), dataset, "needs a folder")


def refused(arguments: CompareArguments, dataset: Dataset, words: str) -> None:
    with pytest.raises(Mistake, match=words), own_folder(arguments, dataset):
        pass


def test_a_trial_trains_evaluates_and_is_not_run_again(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", users=40, items=30, rows=600)
    arguments = CompareArguments(dataset.path, str(tmp_path), epochs=1, uniform=16)
    case = make_cases(("bpr",), (), has_feedback=True, uniform=16)[0]
    base = with_fitting_batch(base_config(arguments), dataset.splits["train"].positives)
    assert base.training.global_batch_size == dataset.splits["train"].positives // 2
    assert with_fitting_batch(base, 10**6) == base
    config = apply(base, case, candidate_settings("bpr", 1)[0], seed=1)
    trial = Trial("bpr-seed1", config, dataset.path, "test")
    result = Here(SilentProgress()).run(run_trial, (trial, str(tmp_path)))
    assert 0 <= result["values"]["recall@20"] <= 1
    assert len(result["groups"]["ndcg@20"]) == 5
    found = run_trials([trial], tmp_path, Here(), progress=SilentProgress())
    assert found["bpr-seed1"]["values"] == result["values"]


def fake_result(section: str, label: str, value: float, added: float = 0.0) -> CaseResult:
    seeds = [
        {
            "values": {"recall@20": value + d, "ndcg@20": value / 2, "disliked@20": 0.01},
            "groups": {"ndcg@20": [0.01, value]},
        }
        for d in (-0.01, 0.01)
    ]
    return CaseResult(section, label, label.split(" ")[0], "t 0.1", added, 0.0, seeds)


def test_page_stands_on_its_own(tmp_path: Path) -> None:
    results = [
        fake_result("losses", "ssm", 0.2),
        fake_result("losses", "bpr", 0.1),
        fake_result("noise", "bpr +10%", 0.09, added=0.1),
        fake_result("dislikes", "ntr x3", 0.15),
        fake_result("negatives", "in-batch <b>", 0.15),
        fake_result("hardness", "ssm 0.3", 0.16),
        fake_result("clipping", "logQ clipped", 0.12),
    ]
    facts = {"data": "/data/x", "users": 40, "items": 30, "train_rows": 600, "preset": "p"}
    facts |= {"epochs": 1, "batch": 64, "uniform": 16, "tuning_trials": 1, "seeds": 2}
    baselines = [
        {"name": "EASE", "left_out": "too many items"},
        {
            "name": "popularity",
            "values": {"recall@20": 0.3, "ndcg@20": 0.21, "disliked@20": 0.1},
            "seconds": 0.2,
            "setting": "",
        },
    ]
    comparison = Comparison.from_json(Comparison(facts, results, baselines, ["ahead"]).to_json())
    assert comparison.results == results and comparison.verdicts == ["ahead"]
    assert baseline_ahead(comparison) == (
        "popularity, for which nothing is trained, is ahead of every loss: NDCG@20 0.2100 beside "
        "0.1000 of ssm"
    )
    assert baseline_ahead(replace(comparison, baselines=baselines[:1])) is None
    assert results[0].deviation("recall@20") == pytest.approx(0.02 / np.sqrt(2))
    write_page(comparison, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data-chart=") == 8
    assert "ssm is the best: NDCG@20 0.1000 ± 0.0000, 100.0 % ahead of bpr." in page
    assert "NaN" not in page.partition("const CHARTS")[2].partition("</script>")[0]
    assert "in-batch <b>" not in page and "in-batch &lt;b&gt;" in page


def test_the_best_loss_is_held_against_the_others_user_by_user(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = random.random(300)
    for slug, lift in (("losses-ssm", 0.1), ("losses-bpr", 0.0)):
        for seed in (1, 2):
            (tmp_path / f"{slug}-seed{seed}").mkdir()
            values = pa.array(base + lift + random.normal(0, 0.01, 300), pa.float32())
            table = pa.table({"user": range(300), "ndcg@20": values})
            write_per_user(per_user_file(tmp_path / f"{slug}-seed{seed}", "test"), table, "d")
    results = [fake_result("losses", "ssm", 0.2), fake_result("losses", "bpr", 0.1)]
    (said,) = verdicts(results, tmp_path, ["losses-ssm", "losses-bpr"])
    assert said.startswith("ssm against bpr: ndcg@20") and "within chance" not in said
    assert "+0.100" in said or "+0.099" in said
    assert verdicts(results[:1], tmp_path, ["losses-ssm"]) == []
