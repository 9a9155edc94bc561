"""`tandem compare`: equal budgets, noise in train alone, and a page that stands on its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from losses import LossName
from tests.datasets import make_dataset
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
from trainer.compare.results import CaseResult, Comparison
from trainer.compare.trials import Trial, run_trial, run_trials
from trainer.compare.working_folder import own_folder
from trainer.data.schema import Dataset
from trainer.launch.here import Here
from trainer.observe.progress import SilentProgress

LOSSES: tuple[LossName, ...] = ("ssm", "sl", "bsl", "ccl", "ova", "bpr", "ntr", "ssm_ntr")
SECTIONS: tuple[Section, ...] = ("noise", "dislikes", "negatives", "clipping")


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
    dataset = make_dataset(tmp_path / "data", users=40, items=30, rows=800)
    (tmp_path / "noisy").mkdir()
    noisy = noisy_dataset(dataset, tmp_path / "noisy", added=0.5, removed=0.25, seed=3)
    rows = dataset.splits["train"].rows
    assert noisy.splits["train"].rows == pytest.approx(1.25 * rows, abs=0.06 * rows)
    assert noisy.splits["test"] == dataset.splits["test"]
    assert noisy.digest != dataset.digest
    table = pq.read_table(noisy.split_files("train")[0])
    liked = table["item"].to_numpy()[table["feedback"].to_numpy() > 0]
    counts = pq.read_table(noisy.file("items.parquet"))["count"].to_numpy()
    np.testing.assert_array_equal(np.bincount(liked, minlength=30), counts)
    assert Dataset.load(noisy.path, verify="digest") == noisy


@pytest.mark.parametrize("name", ["absolute", "../mine", "train/../../mine", "..", ""])
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
    train = replace(dataset.splits["train"], files=(*dataset.splits["train"].files, str(mine)))
    with pytest.raises((Mistake, OSError, ValueError)):
        noisy_dataset(
            replace(dataset, splits={**dataset.splits, "train": train}),
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
        fake_result("clipping", "logQ clipped", 0.12),
    ]
    facts = {"data": "/data/x", "users": 40, "items": 30, "train_rows": 600, "preset": "p"}
    facts |= {"epochs": 1, "batch": 64, "uniform": 16, "tuning_trials": 1, "seeds": 2}
    comparison = Comparison.from_json(Comparison(facts, results).to_json())
    assert comparison.results == results
    assert results[0].deviation("recall@20") == pytest.approx(0.02 / np.sqrt(2))
    write_page(comparison, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 6
    assert "nan" not in page and "<b>" not in page and "http" not in page
