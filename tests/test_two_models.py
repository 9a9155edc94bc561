"""`--effort best`: two models where they find more than one, trained one after another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.test_effort import Graded, Told, spec_of, untimed
from trainer.command_line import overridden
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.effort.choose import choose
from trainer.effort.proposals import proposals
from trainer.effort.tries import try_and_keep
from trainer.effort.two_models import (
    AskedPair,
    measure_pair,
    train_second,
)
from trainer.launch.here import Here
from trainer.observe.choice import read_choice, tried_before
from trainer.observe.progress import SilentProgress
from trainer.retrieval.arguments import EvaluateArguments
from trainer.retrieval.evaluate_run import evaluate
from trainer.run.asked.beside import Beside, joined_with, read_beside, write_beside
from trainer.run.folder import RunFolder, RunSpec
from trainer.train import train_on_rank

pytestmark = pytest.mark.xdist_group("ranks")
__all__ = ["untimed"]  # the fixture
GRADES = {"graph": 0.4, "factors": 0.3, "SL@K": 0.2}


def test_two_are_trained_where_they_find_more(untimed: Dataset, tmp_path: Path) -> None:
    out, told = tmp_path / "run", Told()
    launcher = Graded(GRADES, pairs={"factors": 0.41, "SL@K": 0.45})
    spec = choose(spec_of(untimed, out), "best", launcher, told)
    assert len(launcher.joined) == 3  # the best beside each other one
    assert {asked.first for asked in launcher.joined} == {launcher.joined[0].first}
    beside, choice = read_beside(out), read_choice(out)
    assert beside is not None and choice is not None and not beside.is_trained
    assert (beside.name, beside.weight) == ("SL@K", 0.5)
    assert beside.config.loss.name == "sl_at_k" and spec.config.model.similarity == "dot"
    for config in (spec.config, beside.config):
        assert config.data.train_splits == ("train", "validation")
        assert config.training.epochs == 2 and config.evaluation.every_epochs == 0
    assert choice.chosen == "graph + SL@K" and choice.best.value == 0.45
    assert tried_before(out)[0].split(": ")[1].startswith("graph + SL@K 0.4500, two of 4 models")
    assert any("graph + SL@K" in line and "times 0.5" in line for line in told.lines)
    assert told.lines[-1].endswith("one for 2 epochs, the other for 2")
    assert RunFolder(str(out)).check_start(spec, untimed) is False  # no run yet
    # Cut off and started again: the models of then are there.
    again = Graded({}, pairs={"SL@K": 0.45})
    assert choose(spec_of(untimed, out), "best", again, Told()).config == spec.config
    assert again.given == [] and len(again.joined) == 3
    # Another effort knows nothing of a second model.
    choose(spec_of(untimed, out), "normal", Graded(GRADES), Told())
    assert read_beside(out) is None


def test_a_hundredth_more_is_asked_of_two(untimed: Dataset, tmp_path: Path) -> None:
    launcher, told = Graded(GRADES, pairs={"factors": 0.403}), Told()
    spec = choose(spec_of(untimed, tmp_path / "run"), "best", launcher, told)
    assert read_beside(tmp_path / "run") is None and spec.config.model.similarity == "dot"
    assert told.lines[-1].startswith("chosen: graph (")


def test_slices_of_large_data_are_not_joined(
    untimed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.effort.tries.MOST_STEPS", 1)
    launcher = Graded(GRADES, pairs={"factors": 0.9})
    choose(spec_of(untimed, tmp_path / "run"), "best", launcher, Told())
    assert launcher.joined == [] and read_beside(tmp_path / "run") is None


SHORT: dict[str, Any] = {
    "training.epochs": 1,
    "training.global_batch_size": 64,
    "metrics.enabled": False,
    "evaluation.k": (5,),
    "evaluation.metric": "ndcg@5",
    "evaluation.every_epochs": 1,
    "evaluation.patience": None,
}


def configs(dataset: Dataset) -> list[Config]:
    """Of two proposals, short."""
    return [overridden(each.config, SHORT) for each in proposals(dataset, "normal")[:2]]


def test_a_pair_is_measured_as_evaluate_would(untimed: Dataset, tmp_path: Path) -> None:
    here, folders = Here(SilentProgress()), []
    for config in configs(untimed):
        spec = replace(spec_of(untimed, tmp_path / "run", config), preset="tried")
        folders.append(tmp_path / "run" / "tries" / here.run(try_and_keep, spec)["folder"])
    found = dict(
        here.run(measure_pair, AskedPair(*(str(each) for each in folders), "ndcg@5", 1000))
    )
    assert sorted(found) == [0.5, 1.0]
    folders[1].rename(folders[0] / "beside")
    for weight, value in found.items():
        second = RunFolder(folders[0] / "beside").read_config().config
        write_beside(folders[0], Beside("second", second, is_trained=True, weight=weight))
        measured = evaluate(EvaluateArguments(str(folders[0]), k=(5,), workers=1))
        assert measured["ndcg@5"] == pytest.approx(value)


def test_the_second_follows_the_first_and_counts_once_it_is_whole(
    untimed: Dataset, tmp_path: Path
) -> None:
    out, here = tmp_path / "run", Here(SilentProgress())
    first, second = configs(untimed)
    spec = RunSpec("default", first, untimed.path, str(out))
    out.mkdir()
    write_beside(out, Beside("other", second, is_trained=False))
    summary = here.run(train_on_rank, spec)
    assert train_second(spec, {**summary, "phase": "stopped"}, here) is None
    assert not (out / "beside").exists() and joined_with(out) is None
    found = train_second(spec, summary, here)
    assert found is not None and found["phase"] == "finished"
    assert joined_with(out) is not None
    assert json.loads((out / "beside/config.json").read_text())["config"]["loss"] == json.loads(
        json.dumps(second.to_json()["loss"])
    )
    assert train_second(spec, summary, here) is None  # once
