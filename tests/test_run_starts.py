"""Starts that are refused or fail, before anything is built, written or lost."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import make_dataset
from tests.one_rank import STEPS, Notes, begun, checkpoints, resumed, small_data, spec_of
from tests.test_training import losses, small_config
from trainer.base.mistake import Mistake
from trainer.files.line_file import LineFile
from trainer.retrieval import evaluate
from trainer.run import folder as run_module
from trainer.run import lock
from trainer.run.checkpoint_facts import read_facts
from trainer.run.checkpoint_write import CheckpointWriteError
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.run_facts import RunFacts
from trainer.run.state import read_state
from trainer.train import run_worker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 4 and 6, which stopped there."""
    out = tmp_path_factory.mktemp("whole") / "run"
    begun(data, out, training={"max_steps": 6})
    assert [path.name for path in checkpoints(out)] == ["step-00000004", "step-00000006"]
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_first_start_that_fails_leaves_nothing(data: str, tmp_path: Path) -> None:
    """The mended command is taken then; each of these burned OUT."""
    out = tmp_path / "runs" / "deep" / "run"
    for sections, said in (
        ({"evaluation": {"every_epochs": 1, "metric": "ndcg@7"}}, "'ndcg@7' is not computed at"),
        ({"evaluation": {"every_epochs": 1, "k": (20, 41)}}, "at most 40, the number of items"),
        ({"optimizer": {"tables": "adam"}}, "adam' runs on GPUs only"),
        ({"optimizer": {"table_weight_decay": 0.1}}, "table_weight_decay"),
        ({"training": {"global_batch_size": 1_000_000}}, "more than the 1,1.. rows trained on"),
        ({"loss": {"backend": "triton"}}, "is the CUDA kernel, and there is no GPU here: use auto"),
        ({"data": {"streams": 7}}, "streams = 7 must be a multiple"),
        (
            {"loss": {"name": "ccl", "temperature": 0.5}, "negatives": {"uniform": 64}},
            "ccl works on cosines",
        ),
    ):
        with pytest.raises(Mistake, match=said):
            begun(data, out, **sections)
        assert list(tmp_path.iterdir()) == [], said
    begun(data, out, training={"max_steps": 1})
    assert read_state(out).phase == "finished"


def test_a_folder_that_was_there_stays(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with pytest.raises(Mistake):
        begun(data, out, optimizer={"tables": "adam"})
    assert list(out.iterdir()) == []
    (out / "notes.txt").write_text("mine")
    with pytest.raises(Mistake, match="is no run: it has no config"):
        begun(data, out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_a_start_that_ends_before_its_first_checkpoint_is_begun_anew(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was kept of it: other settings are taken, and none of its lines stay."""
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("trainer.worker_run.check_tables", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            begun(data, out)
    assert max(losses(out)) == 4 and read_state(out).phase == "stopped"
    with pytest.raises(Mistake, match="or begin it anew, for it has no check"):
        begun(data, out)
    resumed(data, out, model={"dim": 8}, training={"max_steps": 2})
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


REFUSED: tuple[tuple[dict[str, dict[str, Any]], str], ...] = (
    ({"optimizer": {"tables": "sgd"}}, "--optimizer.tables: was .rowwise_adagrad., now .sgd."),
    ({"optimizer": {"tower_averaging": 0.9}}, "--optimizer.tower-averaging: was 0.0, now 0.9"),
    ({"training": {"seed": 9}}, "--training.seed: was 1, now 9"),
    ({"data": {"shuffle_window_rows": 77}}, "--data.shuffle-window-rows"),
    ({"loss": {"temperature": 0.3}}, "--loss.temperature: was 0.1, now 0.3"),
    ({"model": {"hidden": (8, 8)}}, "--model.hidden"),
)


def test_a_refused_resume_changes_nothing(run: Path, data: str) -> None:
    """Its config.json had been written by then: the run could no longer be evaluated."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for sections, said in REFUSED:
        with pytest.raises(Mistake, match=said):
            resumed(data, run, **sections)
        after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert after == before, said
    assert "going on from step-00000006" in resumed(data, run)


def test_an_evaluation_that_fails_costs_nothing(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is saved before; the resumed run evaluates what was left out, and no more."""
    evaluation = {"every_epochs": 1, "k": (20,), "patience": 5}
    sections: dict[str, dict[str, Any]] = {"evaluation": evaluation, "training": {"epochs": 2}}
    other = tmp_path / "other"
    begun(data, other, **sections)
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "of_split", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            begun(data, out, **sections)
    assert checkpoints(out)[-1].name == f"step-{STEPS:08d}"
    assert not read_facts(checkpoints(out)[-1]).validation.evaluated
    resumed(data, out, **sections)
    ours, theirs = (evaluations(path) for path in (out, other))
    assert ours == theirs and [line["step"] for line in ours] == [STEPS, 2 * STEPS]
    ours, theirs = (read_facts(checkpoints(path)[-1]).validation for path in (out, other))
    assert ours == theirs and ours.evaluated
    resumed(data, out, **sections)  # all is done: nothing is evaluated twice
    assert len(evaluations(out)) == 2


def evaluations(out: Path) -> list[dict[str, Any]]:
    lines = (out / "validation.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def test_settings_of_a_preset_give_way_to_small_data(tmp_path: Path) -> None:
    """What was asked for by name is refused; what the preset says is fitted, with a note."""
    data, out = tmp_path / "data", tmp_path / "run"
    make_dataset(data, users=20, items=15, rows=300)
    default = small_config()
    config = replace(
        default,
        training=replace(default.training, global_batch_size=1024, max_steps=2),
        evaluation=replace(default.evaluation, every_epochs=1),
    )
    notes = Notes()
    run_worker(RunSpec("ml-100k", config, str(data), str(out)), notes)
    assert notes.said[0] == "training.global_batch_size: 128, since there are 233 rows"
    assert "evaluation.k: 10, since there are 15 items" in notes.said
    assert "evaluation.metric: ndcg@10" in notes.said
    facts = RunFolder(out).read_config()
    assert isinstance(facts, RunFacts) and facts.config.evaluation.k == (10,)
    assert facts.config.training.global_batch_size == 128
    k = replace(config, evaluation=replace(config.evaluation, k=(5, 10)))
    run_worker(RunSpec("ml-100k", k, str(data), str(tmp_path / "k")), notes)
    assert notes.said.count("evaluation.metric: ndcg@10") == 2


def test_memory_that_cannot_suffice_is_told_before_it_is_asked_for(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.model.memory.usable_memory_bytes", lambda: 1 << 30)
    for sections, said in (
        ({"negatives": {"uniform": 2**24}}, "candidates 2.0 GiB.*or the sampled negatives"),
        ({"negatives": {"queue": 2**24, "queue_warmup_steps": 0}}, "queue 1.4 GiB.*lower negativ"),
    ):
        with pytest.raises(Mistake, match=f"needs at least .* GiB of memory a worker .*{said}"):
            begun(data, tmp_path / "run", **sections)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_last_checkpoint_cannot_be_written_fails(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had been told while it was evaluated, and the run ended well with nothing kept."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainer.run.checkpoint_write.write_facts", full)
    notes, out = Notes(), tmp_path / "run"
    spec = spec_of(data, out, evaluation={"every_epochs": 1, "k": (20,)})
    with pytest.raises(CheckpointWriteError, match=r"rank 0: .* No space left"):
        run_worker(spec, notes)
    assert sum("training goes on" in text for text in notes.said) >= 2
    assert not (out / "summary.json").exists()


def test_a_start_that_cannot_be_written_down_leaves_nothing(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs" / "run"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((LineFile, "append"), (run_module, "write_json"), (lock, "write_json")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(Mistake, match=f"{out} cannot be written: .*No space left"):
                begun(data, out)
        assert not (out / "config.json").exists() and not (out / "starts.jsonl").exists()
    begun(data, out, training={"max_steps": 1})
