"""A preset's settings fitted to the data they meet."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.windows import make, make_log, write
from tests.datasets import make_dataset
from tests.one_rank import Notes, small_data
from tests.test_training import small_config
from trainer.base.mistake import Mistake
from trainer.command_line import overridden
from trainer.config.evaluation_section import EvaluationConfig
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.fitting import fitted
from trainer.run.folder import RunFolder, RunSpec
from trainer.train import run_worker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


def test_what_gives_way_to_small_data(data: str, tmp_path: Path) -> None:
    """A preset's settings and a program's; those of a file, or set by hand, are asked for."""
    dataset, config = Dataset.load(data), small_config(training={"global_batch_size": 1024})
    rows = dataset.splits["train"].positives
    wide = replace(config, training=replace(config.training, global_batch_size=4096))
    for preset, given, expected in (
        ("ml-100k", config, 1024),
        ("ml-100k", wide, None),
        ("compare", wide, 1024),
        ("best.toml", wide, None),
    ):
        spec = RunSpec(preset, given, data, str(tmp_path))
        if expected is None:
            with pytest.raises(Mistake, match=rf"4096 is more than the {rows:,} rows trained on"):
                fitted(spec, dataset)
        else:
            assert fitted(spec, dataset)[0].config.training.global_batch_size == expected


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("training.global_batch_size", {}, "global_batch_size=1024 is more than"),
        ("evaluation.k", {"k": (20, 5000)}, "k=20, 5000: cut-offs are at most"),
        ("evaluation.metric", {"k": (10,)}, "metric='ndcg@20' is not computed"),
        ("evaluation.patience", {"every_epochs": 0, "patience": 3}, "patience=3 needs"),
    ],
)
def test_what_the_user_names_is_not_taken_for_the_presets(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """A program's settings all give way to the data, but for those that flags named: also where
    they repeat them."""
    dataset = make_dataset(tmp_path / "data", users=20, items=30, rows=200)
    evaluation = replace(EvaluationConfig(every_epochs=1), **changes)
    config = small_config(training={"global_batch_size": 1024})
    spec = RunSpec("tried", replace(config, evaluation=evaluation), str(dataset.path), "run")
    assert fitted(spec, dataset)[0].config != spec.config
    with pytest.raises(Mistake, match=said):
        fitted(replace(spec, given=frozenset({name})), dataset)


def test_small_windows_are_passed_over_again(tmp_path: Path) -> None:
    """As often as the user says, or the run that is gone on with; else so that steps suffice."""
    data = tmp_path / "data"
    make(write(make_log(3, rows=2400, days=3), tmp_path / "log.parquet"), data, window="day")
    dataset, preset = Dataset.load(str(data)), find_preset("ml-100k")
    events = sum(window.events for window in dataset.windows[1:]) / 2
    assert 200 < events < 230
    for size, passes, told in ((1024, 6, "each 6 times"), (32, 4, "each 4"), (8, 1, "each once")):
        config = small_windows(preset, size)
        spec = RunSpec("ml-100k", config, str(data), str(tmp_path / "run"))
        found, (note, *_) = fitted(spec, dataset)
        assert found.config.training.epochs == passes and told in note
        asked = replace(spec, given=frozenset({"training.epochs"}))
        assert fitted(asked, dataset)[0].config.training.epochs == preset.training.epochs
    training = replace(config.training, epochs=15, max_steps=1)  # what the preset says, too
    asked = replace(asked, config=replace(config, training=training))
    run_worker(asked, Notes())
    again = replace(asked, given=frozenset(), resume=True)
    assert fitted(again, dataset)[0].config.training.epochs == preset.training.epochs == 15
    fewer = replace(again, config=small_windows(preset, 8), given=frozenset({"training.epochs"}))
    fewer = replace(fewer, config=overridden(fewer.config, {"training.epochs": 2}))
    with pytest.raises(Mistake, match="epochs: was 15, now 2"):
        RunFolder(fewer.out).check_start(fewer, dataset)
    linear = replace(config, optimizer=replace(config.optimizer, schedule="linear"))
    named = replace(spec, config=linear, given=frozenset({"optimizer.schedule"}))
    assert preset.optimizer.schedule == "linear"
    with pytest.raises(Mistake, match="schedule=linear with --windows"):
        fitted(named, dataset)


def small_windows(preset: Config, size: int) -> Config:
    return replace(
        preset,
        data=replace(preset.data, windows=True),
        model=replace(preset.model, user_attributes=False, item_attributes=False),
        training=replace(preset.training, global_batch_size=size),
        metrics=replace(preset.metrics, enabled=False),
    )


def test_a_presets_patience_gives_way_where_nothing_is_evaluated(data: str) -> None:
    """`--evaluation.every-epochs 0` is enough; a patience that was asked for is refused."""
    dataset = Dataset.load(data)
    preset = find_preset("default", dataset)
    assert preset.evaluation.patience is not None
    for patience, said in ((preset.evaluation.patience, None), (7, "patience=7 needs")):
        evaluation = replace(preset.evaluation, every_epochs=0, patience=patience)
        spec = RunSpec("default", replace(preset, evaluation=evaluation), data, "run")
        if said is None:
            spec, notes = fitted(spec, dataset)
            assert spec.config.evaluation.patience is None
            assert "no early stopping, since evaluation.every_epochs is 0" in notes
        else:
            with pytest.raises(Mistake, match=said):
                fitted(spec, dataset)
