"""Two models as one: scores are added, each as far spread as the other; what cannot be joined."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.datasets import make_dataset
from tests.retrieval.ranks import run_on_ranks
from tests.test_effort import Told
from tests.test_training import small_config
from trainer.base.mistake import Mistake
from trainer.bundle.manifest import read_manifest
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks, process_group
from trainer.files.json_files import read_json, write_json
from trainer.files.storage import copy_tree
from trainer.observe.progress import SilentProgress
from trainer.report.report import ReportArguments, report
from trainer.retrieval.arguments import EvaluateArguments, ExportArguments, JoinArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.evaluate import evaluate_split
from trainer.retrieval.evaluate_run import evaluate
from trainer.retrieval.export import export
from trainer.retrieval.joining.join_runs import join_quietly
from trainer.retrieval.known import known_at
from trainer.retrieval.opened import OpenedRun
from trainer.run.asked.beside import joined_with, read_beside
from trainer.run.asked.newest import asked_checkpoint
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.lock import RunLock
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")
DOT = {"tower": "mf", "similarity": "dot", "dim": 24}
PLACES = {"tower": "history", "history_pooling": "places", "sequence_length": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "D"
    return make_dataset(path, users=80, items=40, rows=1500)


def train(dataset: Dataset, out: Path, model: dict[str, Any], **sections: Any) -> Path:
    config = small_config(model=model, training={"max_steps": 12}, **sections)
    run_worker(RunSpec("ml-100k", config, dataset.path, str(out)), SilentProgress())
    return out


@pytest.fixture(scope="module")
def runs(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return train(data, root / "places", PLACES), train(data, root / "dot", DOT)


@pytest.fixture
def run(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A run that another may be joined to."""
    shutil.copytree(runs[0], tmp_path / "R")
    return tmp_path / "R"


def scores(encoder: Encoder, data: Dataset) -> torch.Tensor:
    users = torch.arange(data.num_users)
    known = known_at(data, users.tolist(), encoder.marks)
    return encoder.queries(users, known.history, known.disliked) @ encoder.items().embedding_ID.T


def test_scores_are_added_each_as_far_spread(
    run: Path, runs: tuple[Path, Path], data: Dataset
) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    with process_group() as ranks:
        both = OpenedRun(run, ranks)
        parts = [scores(OpenedRun(each, ranks).encoder, data) for each in runs]
        assert both.encoder.beside is not None
        square = both.encoder.beside.scale**2
        found = scores(both.encoder, data)
        own = both.trained.config.model.width
        assert both.items.embedding_ID.shape[1] == own + 24
    torch.testing.assert_close(found, parts[0] + square * parts[1], atol=1e-5, rtol=1e-5)
    spreads = [float(part.std(dim=1).mean()) for part in parts]
    assert spreads[0] == pytest.approx(square * spreads[1], rel=0.02)
    assert abs(spreads[0] / spreads[1] - 1) > 0.1  # or it would show nothing


def test_a_weight_is_of_the_second_models_scores(run: Path, runs: tuple[Path, Path]) -> None:
    scales = []
    for weight in (1.0, 4.0):  # joined again: the one before is gone
        join_quietly(JoinArguments(str(run), str(runs[1]), weight))
        with process_group() as ranks:
            beside = OpenedRun(run, ranks).encoder.beside
            assert beside is not None
            scales.append(beside.scale)
    assert scales[1] == pytest.approx(2 * scales[0])


def test_ranks_find_what_one_does(run: Path, runs: tuple[Path, Path], tmp_path: Path) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    with process_group() as ranks:
        alone = evaluated(ranks, str(run))
    for found in run_on_ranks(evaluated, (2,), (str(run),), tmp_path)[2]:
        assert found == pytest.approx(alone, abs=1e-6)


def evaluated(ranks: Ranks, run: str) -> dict[str, float]:
    opened = OpenedRun(run, ranks)
    return evaluate_split(opened.encoder, opened.trained.dataset, "validation", [10]).values


def test_the_run_answers_alone_without_the_file(run: Path, runs: tuple[Path, Path]) -> None:
    alone, named = read_beside(run), asked_checkpoint(RunFolder(run))
    join_quietly(JoinArguments(str(run), str(runs[1])))
    both = joined_with(run)
    assert alone is None and both is not None and both.config.model.dim == 24
    assert asked_checkpoint(RunFolder(run)).startswith(f"{named}, beside step-")  # another bundle
    assert not (runs[1] / "beside").exists()
    (run / "beside.json").unlink()
    assert joined_with(run) is None and asked_checkpoint(RunFolder(run)) == named


def test_evaluate_says_of_what_it_is(
    run: Path, runs: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    evaluate(EvaluateArguments(str(run), workers=1))
    told = capsys.readouterr().out
    assert "two models" in told and "dot" in told
    beside = read_json(run / "beside.json")
    write_json(run / "beside.json", {**beside, "is_trained": False})
    evaluate(EvaluateArguments(str(run), workers=1))
    assert "is not trained to its end" in capsys.readouterr().out


def test_the_page_of_a_run_says_so(run: Path, runs: tuple[Path, Path], tmp_path: Path) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    report(ReportArguments((str(run),), out=str(tmp_path / "r.html"), people=2))
    assert "Answers are of two models" in (tmp_path / "r.html").read_text()


def test_a_new_run_begins_with_the_first_alone(
    run: Path, runs: tuple[Path, Path], data: Dataset, tmp_path: Path
) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    told, config = Told(), RunFolder(run).read_config().config
    spec = RunSpec("ml-100k", config, data.path, str(tmp_path / "new"), start_from=str(run))
    run_worker(spec, told)
    assert any("not the second one beside it" in line for line in told.lines)


def test_what_cannot_be_joined_is_said_before_anything_is_touched(
    run: Path, runs: tuple[Path, Path], data: Dataset, tmp_path: Path
) -> None:
    def refused(other: Path, words: str) -> None:
        with pytest.raises(Mistake, match=words):
            join_quietly(JoinArguments(str(run), str(other)))
        assert not (run / "beside.json").exists()

    refused(run, "is the run itself")
    (tmp_path / "link").symlink_to(run)
    refused(tmp_path / "link", "is the run itself")
    refused(tmp_path / "nowhere", "is no run")
    more = train(
        data, tmp_path / "more", DOT, data={"train_splits": ("train", "validation")},
        evaluation={"every_epochs": 0, "patience": None},
    )  # fmt: skip
    refused(more, "one model was trained on train, the other on train validation")
    other_data = make_dataset(tmp_path / "D2", users=70, items=40, rows=1500)
    refused(train(other_data, tmp_path / "elsewhere", DOT), "were trained on other data")
    shutil.copytree(runs[1], tmp_path / "two")
    join_quietly(JoinArguments(str(tmp_path / "two"), str(runs[0])))
    refused(tmp_path / "two", "has a second model of its own")
    (run / "beside").mkdir()
    (run / "beside/notes.txt").write_text("mine")
    refused(runs[1], "is no run's: move it away")
    assert (run / "beside/notes.txt").read_text() == "mine"


def test_what_is_trained_now_is_left_alone(run: Path, runs: tuple[Path, Path]) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    for held in (run, run / "beside"):
        lock = RunLock(held)
        lock.take("a training")
        with pytest.raises(Mistake):
            join_quietly(JoinArguments(str(run), str(runs[1])))
        lock.release()
    assert joined_with(run) is not None
    join_quietly(JoinArguments(str(run), str(runs[1])))


def test_an_earlier_second_model_stays_until_the_next_is_whole(
    run: Path, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    shutil.copytree(runs[1], tmp_path / "linked")
    step = min((tmp_path / "linked/checkpoints").glob("step-*"))
    (step / "link").symlink_to("/etc/passwd")
    with pytest.raises(Mistake, match="is a link"):
        join_quietly(JoinArguments(str(run), str(tmp_path / "linked")))
    assert joined_with(run) is not None
    with process_group() as ranks:
        assert OpenedRun(run, ranks).second is not None


def test_what_stands_beside_is_not_taken_away_to_be_copied(
    run: Path, runs: tuple[Path, Path]
) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    with pytest.raises(Mistake, match=r"stands beside .* already"):
        join_quietly(JoinArguments(str(run), str(run / "beside")))
    assert joined_with(run) is not None and (run / "beside/config.json").is_file()


def test_a_bundle_reads_no_table_but_its_own(
    run: Path, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    export(ExportArguments(str(run), str(tmp_path / "B"), encoder_limit=0))
    said = read_json(tmp_path / "B/bundle.json")
    assert said["width"] == 24 + RunFolder(run).read_config().config.model.width
    table = next(iter(said["beside"]["tables"].values()))
    table["file"] = "../R/secret.safetensors"
    write_json(tmp_path / "B/bundle.json", said)
    with pytest.raises(Mistake, match="which is no file of the bundle"):
        read_manifest(tmp_path / "B")


def test_flags_that_two_models_do_not_have(
    run: Path, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    with pytest.raises(Mistake, match="--width 8: a second model stands beside"):
        export(ExportArguments(str(run), str(tmp_path / "B"), width=8))
    for weight in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(Mistake, match="--weight"):
            JoinArguments("R", "O", weight)


def test_a_file_that_says_something_else_is_named(run: Path, runs: tuple[Path, Path]) -> None:
    join_quietly(JoinArguments(str(run), str(runs[1])))
    (run / "beside.json").write_text('{"name": 3}')
    with pytest.raises(Mistake, match=r"beside\.json: "):
        joined_with(run)


def test_links_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a/inner").mkdir(parents=True)
    (tmp_path / "a/inner/file").write_bytes(b"x" * 100)
    copy_tree(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b/inner/file").read_bytes() == b"x" * 100
    (tmp_path / "a/link").symlink_to("/etc/passwd")
    with pytest.raises(Mistake, match="is a link"):
        copy_tree(tmp_path / "a", tmp_path / "c")
