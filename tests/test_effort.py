"""The dial of `default`: what is tried, flags hold in all of it, and nothing is tried twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import make_dataset
from trainer.base.mistake import Mistake
from trainer.command_line import overridden, settings_given
from trainer.config.default_preset import default_preset
from trainer.config.sections import Config, settings_of
from trainer.data.feature_types import Attribute
from trainer.data.schema import Dataset
from trainer.effort.choices import Effort
from trainer.effort.choose import choose, chosen, differences
from trainer.effort.data_facts import facts_of
from trainer.effort.decided import as_decided
from trainer.effort.proposals import proposals
from trainer.effort.tries import try_and_keep, try_out
from trainer.effort.two_models import AskedPair, measure_pair
from trainer.files.json_files import write_json
from trainer.launch.causes import WorkFailedError
from trainer.launch.here import Here
from trainer.launch.launcher import Work
from trainer.observe.choice import read_choice
from trainer.observe.progress import SilentProgress
from trainer.retrieval.baselines.measured import measure_baselines
from trainer.run.asked.beside import read_beside
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.lock import Owner, RunLock, this_machine


def ids_alone(dataset: Dataset) -> Dataset:
    """Its description written anew, without attributes."""
    dataset = replace(dataset, user_attributes=(), item_attributes=(), context_attributes=())
    Path(dataset.path, "dataset.json").write_text(dataset.to_json())
    return dataset


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("timed") / "data"
    return ids_alone(make_dataset(path, users=60, items=30, rows=900))


@pytest.fixture(scope="module")
def untimed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("untimed") / "data"
    return ids_alone(make_dataset(path, users=60, items=30, rows=900, timed=False))


@dataclass
class Told(SilentProgress):
    """Keeps what the user is told."""

    lines: list[str] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class Graded:
    """A launcher whose tries find what a table says, by the tower; keeps what it was given."""

    grade: Mapping[str, float]
    by_epochs: Mapping[int, float] = field(default_factory=dict)
    """What trainings of a length find, whatever they are."""
    given: list[RunSpec] = field(default_factory=list)
    popularity: float = 0.01
    without_room: tuple[str, ...] = ()
    ends_at: str = ""
    pairs: Mapping[str, float] = field(default_factory=dict)
    """What the best finds beside another, by the other's name."""
    joined: list[AskedPair] = field(default_factory=list)
    is_here = True

    def run(self, work: Work, arguments: Any, resumable: Any = None) -> Any:
        raise AssertionError

    def each(self, work: Work, many: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        if work is measure_baselines:
            yield "baselines", [{"name": "popularity", "values": {"ndcg@20": self.popularity}}]
            return
        if work is measure_pair:
            self.joined += many.values()
            yield from ((name, [(1.0, 0.1), (0.5, self.pairs.get(name, 0.0))]) for name in many)
            return
        assert work in (try_out, try_and_keep)
        for name, spec in many.items():
            self.given.append(spec)
            if name == self.ends_at:
                raise WorkFailedError(f"{name} was ended by SIGKILL")
            by_name = self.grade.get(name.partition(",")[0], 0.1)
            best = self.by_epochs.get(spec.config.training.epochs, by_name)
            failed = "no room" if name in self.without_room else None
            found = {"best": best, "best_epoch": 2, "seconds": 1.0, "failed": failed}
            if work is try_and_keep:
                found["folder"] = f"{name} {spec.config.training.epochs}"
                model = Path(spec.out, "tries", str(found["folder"]))
                checkpoint = model / "checkpoints/step-00000001"
                checkpoint.mkdir(parents=True, exist_ok=True)
                (checkpoint / "checkpoint.json").write_text("{}")
            yield name, found


def spec_of(
    dataset: Dataset, out: Path, config: Config | None = None, given: Iterable[str] = ()
) -> RunSpec:
    config = config or default_preset(dataset)
    return RunSpec("default", config, dataset.path, str(out), given=frozenset(given))


def test_an_order_is_tried_as_a_sequence_and_a_graph_without(
    timed: Dataset, untimed: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_order = [each.config.model.tower for each in proposals(timed, "normal")]
    assert by_order == ["sequence", "history", "history", "mf"]
    by_graph = [each.config.model.similarity for each in proposals(untimed, "normal")]
    assert by_graph == ["dot", "cosine", "cosine"]
    monkeypatch.setattr("trainer.effort.proposals.MANY_ROWS", 10)
    assert "SL@K" not in [each.name for each in proposals(untimed, "normal")]
    assert "SL@K" in [each.name for each in proposals(untimed, "best")]
    (rules,) = proposals(timed, "quick")
    assert rules.config == default_preset(timed)


def test_attributes_are_tried_where_there_are_some(untimed: Dataset) -> None:
    genre = Attribute("genre", "single", 5)
    known = replace(untimed, item_attributes=(genre,))
    last = proposals(known, "normal")[-1].config.model
    assert last.item_attributes and not last.user_attributes and last.similarity == "dot"


@pytest.mark.parametrize("is_timed", [True, False])
def test_each_says_what_it_is_wherever_it_stands_in_a_table(
    is_timed: bool, timed: Dataset, untimed: Dataset
) -> None:
    known = replace(
        timed if is_timed else untimed, item_attributes=(Attribute("genre", "single", 5),)
    )
    told = [each.why for each in proposals(known, "best")]
    assert len(set(told)) == len(told)
    assert not [why for why in told if "the same" in why or "the first," in why]


def test_new_items_are_told_by_their_attributes(
    untimed: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(untimed, item_attributes=(Attribute("genre", "single", 5),))
    assert facts_of(known).new_share < 0.05
    monkeypatch.setattr("trainer.effort.data_facts._new_share", lambda dataset: 0.5)
    model = proposals(known, "normal")[-1].config.model
    assert model.item_attributes and model.id_dropout == 0.9 and not model.spectral_start


def test_the_best_on_validation_is_trained(timed: Dataset, tmp_path: Path) -> None:
    told, launcher = Told(), Graded({"places": 0.3, "sequence": 0.2})
    found = choose(spec_of(timed, tmp_path / "run"), "normal", launcher, told)
    assert found.config.model.history_pooling == "places" and found.config.model.dim == 64
    assert len(launcher.given) == 6  # the two best in full as well
    assert all(spec.config.evaluation.every_epochs == 1 for spec in launcher.given)
    assert any("0.3000" in line and "places" in line for line in told.lines)
    assert told.lines[-1].startswith("chosen: places")
    assert not any("is ahead" in line for line in told.lines)
    kept = read_choice(tmp_path / "run")
    assert kept is not None and kept.chosen == "places" and kept.baselines == {"popularity": 0.01}
    alone = Graded({"sequence": 0.3, "places": 0.26})  # too far behind for more
    choose(spec_of(timed, tmp_path / "alone"), "normal", alone, told)
    assert len(alone.given) == 5
    values = [each.value for each in kept.models]
    assert len(values) == 4 and values == sorted(values, reverse=True) and values[0] == 0.3
    # Cut off and started again: what was tried is there.
    again = Graded({})
    assert choose(spec_of(timed, tmp_path / "run"), "normal", again, told).config == found.config
    assert again.given == []


def test_a_baseline_that_is_ahead_is_named(timed: Dataset, tmp_path: Path) -> None:
    told = Told()
    choose(spec_of(timed, tmp_path / "run"), "normal", Graded({}, popularity=0.5), told)
    assert any(
        line.startswith("popularity, for which nothing is trained, is ahead") for line in told.lines
    )


def test_a_run_begins_where_tries_are(timed: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    spec = choose(spec_of(timed, out), "normal", Graded({}), Told())
    assert RunFolder(str(out)).check_start(spec, timed) is False
    lines = (out / "tries.jsonl").read_text().splitlines()
    assert len(lines) == 6 and json.loads(lines[0])["metric"] == "ndcg@20"


def test_flags_hold_in_all_that_is_tried(timed: Dataset, tmp_path: Path) -> None:
    rules = default_preset(timed)
    asked = replace(
        rules, model=replace(rules.model, dim=32), training=replace(rules.training, seed=7)
    )
    launcher = Graded({"sequence": 0.9})
    found = choose(spec_of(timed, tmp_path / "run", asked), "normal", launcher, Told())
    assert {spec.config.model.dim for spec in launcher.given} == {32}
    assert {spec.config.training.seed for spec in launcher.given} == {7}
    assert found.config.model.tower == "sequence" and found.config.model.dim == 32


def test_flags_that_say_what_the_rules_say_hold_too(timed: Dataset, tmp_path: Path) -> None:
    flags = ["--model.dim", "64", "--model.no-use-user-id", "--data", "D", "--loss.name=bsl"]
    given = settings_given(flags)
    assert given == {"model.dim", "model.use_user_id", "loss.name"}
    launcher = Graded({"places, wide": 0.9})
    choose(spec_of(timed, tmp_path / "run", None, given), "normal", launcher, Told())
    assert {spec.config.model.dim for spec in launcher.given} == {64}
    assert {spec.config.model.use_user_id for spec in launcher.given} == {False}


def test_flags_may_leave_no_choice(timed: Dataset, tmp_path: Path) -> None:
    rules, told, launcher = default_preset(timed), Told(), Graded({})
    given = settings_of(rules.to_json())
    spec = spec_of(timed, tmp_path / "run", None, given)
    assert choose(spec, "normal", launcher, told) == spec
    assert launcher.given == [] and "the flags leave no choice" in told.lines[0]
    assert overridden(rules, differences(rules, rules)) == rules


def test_what_cannot_be_trained_is_said_and_left_out(timed: Dataset, tmp_path: Path) -> None:
    told = Told()
    launcher = Graded({"sequence": 0.9}, without_room=("sequence",))
    spec = choose(spec_of(timed, tmp_path / "a"), "normal", launcher, told)
    assert spec.config.model.tower == "history"
    assert any("cannot be trained: no room" in line for line in told.lines)
    ended = Graded({"places, wide": 0.9}, ends_at="places, wide")
    spec = choose(spec_of(timed, tmp_path / "b"), "normal", ended, told)
    assert spec.config.model.dim == 64 or spec.config.model.tower == "sequence"
    assert any("ended by SIGKILL" in line for line in told.lines)
    first = Graded({}, ends_at="sequence")
    spec = spec_of(timed, tmp_path / "c")
    assert choose(spec, "normal", first, told) == spec
    assert told.lines[-1].endswith("the rules decide")


@pytest.mark.parametrize("effort", ["normal", "best"])
def test_nothing_is_tried_where_it_would_say_nothing(
    timed: Dataset, tmp_path: Path, effort: Effort
) -> None:
    launcher = Graded({})
    spec = spec_of(timed, tmp_path / "run")
    config = spec.config
    for left in (
        replace(spec, preset="demo"),
        replace(spec, config=replace(config, data=replace(config.data, windows=True))),
    ):
        assert choose(left, effort, launcher, Told()) == left
    assert launcher.given == []
    elsewhere = replace(spec, data=str(tmp_path / "nowhere"))
    told = Told()
    assert choose(elsewhere, effort, launcher, told) == elsewhere
    assert "does not see the data" in told.lines[0]
    with pytest.raises(Mistake, match="no prepared dataset"):
        choose(elsewhere, effort, None, told)
    with pytest.raises(Mistake, match="--effort best is of the preset default, not of demo"):
        chosen(replace(spec, preset="demo"), "best", None)
    assert chosen(spec, "quick", None) == spec


@pytest.mark.parametrize("effort", ["normal", "best"])
def test_what_was_best_is_trained_on_all(untimed: Dataset, tmp_path: Path, effort: Effort) -> None:
    launcher, told = Graded({"factors": 0.4, "graph": 0.3}), Told()
    found = choose(spec_of(untimed, tmp_path / "run"), effort, launcher, told).config
    assert found.data.train_splits == ("train", "validation")
    assert found.evaluation.every_epochs == 0 and found.evaluation.patience is None
    assert found.model.similarity == "cosine"
    assert found.training.epochs == 2  # as long as the best was trained
    assert told.lines[-1].endswith("it is now trained on train and validation for 2 epochs")
    lengths = [spec.config.training.epochs for spec in launcher.given]
    assert min(lengths) < max(lengths)  # short tries first
    assert bool(launcher.joined) == (effort == "best")
    assert read_beside(tmp_path / "run") is None  # no pair was ahead


def test_a_short_training_that_is_better_is_the_length(untimed: Dataset, tmp_path: Path) -> None:
    """On small data a third of the epochs, with its own decay, may end above all of them."""
    shorter = Graded({"factors": 0.4}, by_epochs={24: 0.2})
    found = choose(spec_of(untimed, tmp_path / "a"), "normal", shorter, Told()).config
    assert found.model.similarity == "cosine" and found.training.epochs == 2
    watched = {"evaluation.every_epochs"}  # the user wants to see validation: train alone
    found = choose(
        spec_of(untimed, tmp_path / "b", None, watched), "normal", shorter, Told()
    ).config
    assert found.data.train_splits == ("train",) and found.training.epochs == 8
    hurried = spec_of(untimed, tmp_path / "c", overridden(default_preset(untimed), NEVER))
    found = choose(hurried, "normal", shorter, Told()).config
    assert found.data.train_splits == ("train",) and found.training.epochs == 2
    assert found.evaluation.patience is None


NEVER = {"evaluation.every_epochs": 0, "evaluation.patience": None}


def test_one_command_line_serves_every_start(untimed: Dataset, tmp_path: Path) -> None:
    """What was decided holds for the start that goes on; where that was asked for, its flags do."""
    flags = overridden(default_preset(untimed), {"training.epochs": 9, "evaluation.patience": 5})
    spec = replace(spec_of(untimed, tmp_path / "run", flags), resume="auto")
    assert as_decided(spec) == spec
    begun = choose(spec, "normal", Graded({"factors": 0.4}), Told())
    assert begun.config.training.epochs == 2 and as_decided(spec) == spec
    folder = RunFolder(spec.out)
    facts = {"dataset_digest": untimed.digest, "world_size": 1, "versions": {}, "start_from": None}
    recorded = {"run_id": spec.run_id, "preset": "default", "data": spec.data}
    write_json(folder.config_file, {**recorded, **facts, "config": begun.config.to_json()})
    again = as_decided(replace(spec, config=overridden(begun.config, {"training.epochs": 9})))
    assert again.config == begun.config
    told = replace(spec, resume=True)
    assert as_decided(told) == told


def test_a_choice_that_came_to_nothing_is_forgotten(untimed: Dataset, tmp_path: Path) -> None:
    spec = spec_of(untimed, tmp_path / "run")
    choose(spec, "normal", Graded({}), Told())
    assert read_choice(tmp_path / "run") is not None
    choose(spec, "quick", Graded({}), Told())
    assert read_choice(tmp_path / "run") is None


@pytest.mark.parametrize("limit", ["MOST_STEPS", "MOST_ROWS"])
def test_large_data_are_watched_to_the_end(
    untimed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """A try sees its first steps alone, in full as well: nothing would be learnt twice."""
    monkeypatch.setattr(f"trainer.effort.choose.{limit}", 1)
    launcher = Graded({"factors": 0.4})
    found = choose(spec_of(untimed, tmp_path / "run"), "normal", launcher, Told()).config
    assert len(launcher.given) == 3
    assert found.data.train_splits == ("train",) and found.evaluation.every_epochs == 1
    assert found.training.epochs == 24


def test_a_try_is_a_training_that_leaves_nothing(timed: Dataset, tmp_path: Path) -> None:
    """Within its first epoch, too, where no evaluation comes by itself."""
    config = proposals(timed, "normal")[1].config
    small = replace(config.training, epochs=1, global_batch_size=64, max_steps=2)
    metrics = replace(config.metrics, enabled=False)
    evaluation = replace(config.evaluation, k=(5,), metric="ndcg@5", every_epochs=1)
    config = replace(config, training=small, metrics=metrics, evaluation=evaluation)
    spec = replace(spec_of(timed, tmp_path / "run", config), preset="tried")
    found = Here(SilentProgress()).run(try_out, spec)
    assert 0 < found["best"] < 1 and found["best_epoch"] == 1
    assert not any((tmp_path / "run" / "tries").iterdir())


def test_what_a_killed_try_left_is_removed_and_what_lives_is_not(
    timed: Dataset, tmp_path: Path
) -> None:
    """Ctrl-C and lost nodes end tries by SIGKILL."""
    out = tmp_path / "run"
    killed, lives = (out / "tries" / name for name in ("killed", "lives"))
    for folder in (killed, lives):
        (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000001" / "shard").write_bytes(b"x")
    left = Owner("start", "token", "host", this_machine(), pid=1, renewed=0.0)
    write_json(killed / "owner.json", asdict(left))
    lock = RunLock(lives)
    lock.take("another start")
    spec = spec_of(timed, out)
    assert RunFolder(str(out)).check_start(spec, timed) is False
    choose(spec, "normal", Graded({}), Told())
    assert not killed.exists() and lives.exists()
    lock.release()
    with RunFolder(str(out)).taken("start"):
        assert not (out / "tries").exists()
