"""`tandem tune`: what a trial's config becomes, its files, and one real search."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest

from cluster.tune.drawn import SPREAD, TEMPERATURE_RANGE, apply_settings, draw_settings
from cluster.tune.search import (
    Trial,
    TuneArguments,
    best_first,
    main,
    table,
    trial_of,
    write_results,
)
from tests.datasets import make_dataset
from trainer.base.mistake import Mistake
from trainer.compare.comparison import base_config
from trainer.compare.flags import CompareArguments
from trainer.config.negatives_section import NegativesConfig
from trainer.config.presets import find_preset
from trainer.run.folder import RunSpec

SETTINGS = {
    "loss.name": "ssm",
    "loss.temperature": 0.2,
    "optimizer.table_learning_rate": 0.3,
    "optimizer.tower_learning_rate": 0.004,
}


def test_another_loss_leaves_the_presets_own_parameters_behind() -> None:
    config = find_preset("gowalla")
    assert config.loss.name == "bsl" and config.loss.negative_weight is not None
    drawn = apply_settings(config, SETTINGS)
    assert (drawn.loss.name, drawn.loss.temperature) == ("ssm", 0.2)
    assert drawn.loss.negative_weight is None
    assert drawn.optimizer.table_learning_rate == 0.3
    assert drawn.optimizer.tower_learning_rate == 0.004
    assert apply_settings(config, {**SETTINGS, "loss.name": "ccl"}).loss.temperature is None
    same = apply_settings(config, {**SETTINGS, "loss.name": "bsl"})
    assert same.loss.negative_weight == config.loss.negative_weight


def test_the_best_trial_becomes_a_preset_file(tmp_path: Path) -> None:
    spec = RunSpec("gowalla", find_preset("gowalla"), "data", str(tmp_path))
    good = Trial(4, SETTINGS, 0.25, 2, (0.1, 0.25), "finished")
    broken = Trial(1, SETTINGS, math.nan, 0, (), "failed")
    write_results(best_first([broken, good]), spec, tmp_path)
    best = find_preset(str(tmp_path / "best.toml"))
    assert best.loss.temperature == 0.2
    assert best.training == spec.config.training
    records = json.loads((tmp_path / "trials.json").read_text())["trials"]
    assert [record["best"] for record in records] == [0.25, None]
    assert "Trial 4 is the best: validation ndcg@20 0.2500 with ssm" in (
        (tmp_path / "trials.html").read_text()
    )


def test_a_trial_that_diverged_is_never_the_best() -> None:
    def trial(number: int, curve: tuple[float, ...], status: str = "finished") -> Trial:
        best = max((value for value in curve if math.isfinite(value)), default=math.nan)
        return Trial(number, SETTINGS, best, len(curve), curve, status)  # type: ignore[arg-type]

    before_its_first = trial(0, (), "failed")
    after_a_good_one = trial(1, (0.6,), "failed")
    without_a_value = trial(2, (math.nan,))
    stopped, finished = trial(3, (0.3,), "stopped early"), trial(4, (0.1, 0.5))
    mixed = [before_its_first, stopped, after_a_good_one, without_a_value, finished]
    for order in (mixed, mixed[::-1]):
        assert [one.number for one in best_first(order)] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("values", "epochs", "every", "failed", "best", "status"),
    [
        ([0.1, 0.4, 0.3], 3, 1, False, 0.4, "finished"),
        ([0.1, 0.4], 5, 2, False, 0.4, "finished"),  # epochs 2 and 4: a fifth is not evaluated
        ([0.1], 5, 2, False, 0.1, "stopped early"),
        ([math.nan, 0.2, math.inf], 3, 1, True, 0.2, "failed"),
        ([], 3, 1, True, math.nan, "failed"),
    ],
)
def test_what_a_trial_came_to(
    values: list[float], epochs: int, every: int, failed: bool, best: float, status: str
) -> None:
    reported = [(value, (place + 1) * every) for place, value in enumerate(values)]
    frame = pandas.DataFrame(reported, columns=["metric", "training_iteration"])
    result = SimpleNamespace(
        metrics_dataframe=frame if values else None,
        error=RuntimeError("diverged") if failed else None,
        config={"settings": SETTINGS},
    )
    trial = trial_of(0, result, epochs, every)
    assert trial.best == best or (math.isnan(trial.best) and math.isnan(best))
    assert trial.status == status


def test_a_preset_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[los]\n")
    with pytest.raises(ValueError, match="unknown field los: did you mean"):
        find_preset(str(tmp_path / "x.toml"))
    with pytest.raises(ValueError, match=r"absent\.toml: does not"):
        find_preset(str(tmp_path / "absent.toml"))


def test_losses_take_turns_and_the_rest_is_drawn_within_its_range() -> None:
    config = find_preset("gowalla")
    drawn = draw_settings(config, ["ssm", "bsl", "ccl"], trials=60, seed=3)
    assert [settings["loss.name"] for settings in drawn] == ["ssm", "bsl", "ccl"] * 20
    rate = config.optimizer.table_learning_rate
    for field, low, high in (
        ("loss.temperature", *TEMPERATURE_RANGE),
        ("optimizer.table_learning_rate", rate / SPREAD, rate * SPREAD),
    ):
        values = sorted(settings[field] for settings in drawn)
        assert low <= values[0] < values[-1] <= high
        middle = (low * high) ** 0.5  # half of them on either side, on a logarithmic scale
        assert 18 <= sum(value < middle for value in values) <= 42
    assert drawn == draw_settings(config, ["ssm", "bsl", "ccl"], trials=60, seed=3)
    assert drawn != draw_settings(config, ["ssm", "bsl", "ccl"], trials=60, seed=4)
    assert {settings["loss.name"] for settings in draw_settings(config, [], 5, 0)} == {"bsl"}
    with pytest.raises(ValueError, match="--trials 2: 3 losses take turns, so at least 3"):
        TuneArguments("data", "out", config, trials=2, losses=("ssm", "bsl", "ccl"))
    with pytest.raises(ValueError, match=r"loss.name=ccl with negatives.uniform=0"):
        in_batch = replace(config, negatives=NegativesConfig())
        TuneArguments("data", "out", in_batch, losses=("ssm", "ccl"))


def test_the_table_fits_80_columns_and_cuts_nothing() -> None:
    long = {**SETTINGS, "loss.name": "improved_logq", "optimizer.tower_learning_rate": 0.000223}
    trials = [
        Trial(12, long, 0.25, 100, (0.25,), "stopped early"),
        Trial(7, {**SETTINGS, "loss.name": "ccl"}, math.nan, 0, (), "failed"),
    ]
    title, head, first, second = table(trials, "recall@20").splitlines()
    assert title == "validation recall@20, best first"
    assert head.split() == ["trial", "loss", "temperature", "table", "lr", "tower", "lr", "epochs",
                            "best"]  # fmt: skip
    assert first.split() == ["12", "improved_logq", "0.2", "0.3", "0.000223", "100", "0.2500",
                             "stopped"]  # fmt: skip
    assert second.split() == ["7", "ccl", "-", "0.3", "0.004", "0", "nan", "failed"]
    assert max(len(head), len(first), len(second)) <= 80


def test_trackers_are_told_of_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were: twenty runs that stop early, in a tracker of runs."""
    config = find_preset("gowalla")
    tracked = replace(config, metrics=replace(config.metrics, track=("tensorboard",)))
    assert apply_settings(tracked, SETTINGS).metrics.track == ()
    monkeypatch.setattr("trainer.compare.comparison.find_preset", lambda name: tracked)
    base = base_config(CompareArguments("data", "out"))
    assert base.metrics.track == () and not base.metrics.enabled


@pytest.mark.slow
def test_a_search_ends_in_a_table_a_plot_and_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    out = tmp_path / "out"
    flags = ["--data", str(tmp_path / "data"), "--out", str(out), "--trials", "2"]
    losses = ["--losses", "ssm", "bsl"]
    assert main(["ml-100k", *flags, *losses, "--training.epochs", "2"], verbose=False) == 0
    trials = json.loads((out / "trials.json").read_text())["trials"]
    assert {trial["settings"]["loss.name"] for trial in trials} == {"ssm", "bsl"}
    assert (out / "trials.txt").read_text() in capsys.readouterr().out
    assert trials[0]["best"] == max(trial["best"] for trial in trials)
    assert find_preset(str(out / "best.toml")).training.epochs == 2


def test_what_this_machine_cannot_train_is_told_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "data", users=20, items=12, rows=200)

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("cluster.tune.search.ray_session", started)
    flags = ["demo", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(Mistake, match="leaves weight decay out"):
        main([*flags, "--optimizer.table-weight-decay", "1", "--optimizer.tables", "sgd"], False)
    assert not (tmp_path / "out").exists()
