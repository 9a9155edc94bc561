"""The config's `loss` section: made of the losses' own dataclasses."""

import pickle
import re
from dataclasses import asdict, fields, replace
from typing import Any, get_args, get_type_hints

import pytest
from typing_extensions import Doc

from losses import Backend, Correction, Loss, Precision
from losses.choices import LOSSES
from losses.formulas.formula import Parameter, parameters_of
from trainer.base.mistake import Mistake
from trainer.base.typed import Range
from trainer.command_line import TrainArguments, parse_preset
from trainer.config.loss_section import PARAMETERS, LossConfig
from trainer.config.model_section import ModelConfig
from trainer.config.sections import Config
from trainer.model.build import retrieval_loss


def test_it_offers_what_there_is() -> None:
    hints = {field: get_args(kind) for field, kind in get_type_hints(LossConfig).items()}
    assert hints["name"] == tuple(LOSSES)
    assert hints["backend"] == get_args(Backend)
    assert hints["precision"] == get_args(Precision)
    assert get_args(hints["correction"][0]) == get_args(Correction)
    own = {name for loss in LOSSES.values() for name in parameters_of(loss)}
    assert own == set(PARAMETERS) and own < {field.name for field in fields(LossConfig)}


def test_a_parameters_help_is_that_of_the_losses_that_have_it() -> None:
    hints = get_type_hints(LossConfig, include_extras=True)
    for name in PARAMETERS:
        (doc,) = [each for each in hints[name].__metadata__ if isinstance(each, Doc)]
        for loss in LOSSES.values():
            told = re.search(rf"\b{loss.name}\b.*?: ", doc.documentation) is not None
            assert told == (name in parameters_of(loss)), (name, loss.name)
    assert hints["margin"].__metadata__[0].documentation == (
        "ccl: Negatives scored below this cost nothing; None: 0.9."
    )
    assert "ccl, ova, bpr: none" in hints["correction"].__metadata__[0].documentation


def test_help_has_names_and_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_preset(["ml-100k", "--help-all"], "train", TrainArguments)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for loss in LOSSES.values():
        assert f"{loss.name}: {loss.when}" in shown or f"{loss.name}, " in shown
    assert "--loss.margin {None}|FLOAT ccl: Negatives scored below this cost nothing" in shown


def some(parameter: Parameter) -> Any:
    """A value that is nobody's default."""
    return {bool: True, int: 3, float: 0.5}[parameter.kind]


@pytest.mark.parametrize("name", LOSSES)
def test_any_parameter_of_another_loss_is_refused_with_what_there_is(name: str) -> None:
    for parameter in PARAMETERS:
        value = some(PARAMETERS[parameter])
        if parameter in parameters_of(LOSSES[name]):
            section = LossConfig(name=name, **{parameter: value})
            assert getattr(section, parameter) == value
            continue
        with pytest.raises(
            Mistake, match=f"loss.{parameter}={value} with loss.name={name}: "
        ) as said:
            LossConfig(name=name, **{parameter: value})
        for own in parameters_of(LOSSES[name]):
            assert own in str(said.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cll"}, "loss.name='cll': did you mean 'ccl'"),
        (
            {"name": "ccl", "margin": "wide"},
            "loss.margin='wide': must be a finite number, at least",
        ),
        ({"name": "ccl", "margin": 1001}, "at least -1,000 and at most 1,000, or none"),
        ({"name": "bsl", "several_positives": 1}, "several_positives=1: must be true or false"),
        ({"name": "ntr", "disliked_weight": -1.0}, "disliked_weight=-1.0: .* at least 0"),
        ({"name": "ssm_ntr", "ring": True}, "loss.ring with loss.name=ssm_ntr"),
        ({"ring": True, "backend": "triton"}, "loss.ring with loss.backend=triton"),
    ],
)
def test_values_are_held_to_the_losses_limits(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        LossConfig(**fields)


def test_limits_are_said_once() -> None:
    hints = get_type_hints(LossConfig, include_extras=True)
    inner, _ = get_args(get_args(hints["negative_weight"])[0])
    assert get_args(inner)[1] == Range(above=0, most=1e6)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_set_reaches_the_loss(name: str) -> None:
    own = {parameter: some(each) for parameter, each in parameters_of(LOSSES[name]).items()}
    section = LossConfig(name=name, mask_same_user=True, **own)
    made: Loss = retrieval_loss(section, ModelConfig()).loss
    assert isinstance(made, LOSSES[name]) and asdict(made) == own
    assert asdict(retrieval_loss(LossConfig(name=name), ModelConfig()).loss) == {
        parameter: each.default for parameter, each in parameters_of(LOSSES[name]).items()
    }


def test_another_loss_has_its_own_defaults() -> None:
    bsl = LossConfig(name="bsl", temperature=0.2, negative_weight=1.3, ring=True)
    assert bsl.of("bsl") is bsl
    assert bsl.of("ssm") == LossConfig(name="ssm", temperature=0.2, ring=True)
    assert bsl.of("ccl") == LossConfig(name="ccl", ring=True)  # its weight is another, too
    assert replace(bsl, correction="none").of("sl").correction is None


def test_flags_of_another_loss_than_the_presets() -> None:
    """What the preset sets is dropped, what a flag sets stays, were it the preset's own value."""
    flags = ["--data", "d", "--out", "r", "--loss.name=ccl", "--negatives.uniform", "64"]
    _, parsed = parse_preset(["gowalla", *flags], "train", TrainArguments)
    preset = parse_preset(["gowalla", *flags[:4]], "train", TrainArguments)[1].config.loss
    assert preset.negative_weight is not None
    assert parsed.config.loss == LossConfig(name="ccl", precision=preset.precision)
    flags += ["--loss.negative-weight", str(preset.negative_weight)]
    _, parsed = parse_preset(["gowalla", *flags], "train", TrainArguments)
    assert parsed.config.loss.negative_weight == preset.negative_weight


@pytest.mark.parametrize(
    ("preset", "flags", "message"),
    [
        ("gowalla", ["--loss.name", "ssm", "--loss.margin", "0.3"], "margin belongs to ccl"),
        ("gowalla", ["--loss.margin", "0.3"], "loss bsl has none; it has negative_temperature"),
        ("ml-100k", ["--loss.name", "ccl"], "loss.name=ccl with negatives.uniform=0"),
    ],
)
def test_flags_are_held_to_the_rules(
    preset: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((Mistake, SystemExit)) as stopped:
        parse_preset([preset, "--data", "d", "--out", "r", *flags], "train", TrainArguments)
    told = capsys.readouterr()
    shown = " ".join((str(stopped.value) + told.err + told.out).replace("│", " ").split())
    assert message in shown


def test_runs_of_earlier_versions_are_read() -> None:
    then = Config().to_json()
    then["model"]["neighbours"] = 16
    assert Config.from_json(then) == Config()
    then["model"]["tower"] = "graph"
    with pytest.raises(Mistake, match=r"model\.tower='graph': must be one of mf, mlp"):
        Config.from_json(then)


def test_it_goes_through_json_and_pickle() -> None:
    config = Config(loss=LossConfig(name="bsl", negative_weight=1.3))
    assert Config.from_json(config.to_json()) == config
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(Mistake, match=r"loss\.margin=0\.5 with loss\.name=bsl"):
        Config.from_json({"loss": {"name": "bsl", "margin": 0.5}})


def test_hardness_is_of_losses_that_sum_exponentials() -> None:
    section = LossConfig(hardness=0.5)
    assert retrieval_loss(section, ModelConfig()).hardness == 0.5
    assert section.of("bsl").hardness == 0.5 and section.of("bpr").hardness == 0.0
    with pytest.raises(Mistake, match=r"^loss.hardness=0.5: loss ccl sums no .* or take ssm, sl"):
        LossConfig(name="ccl", hardness=0.5)


def test_what_losses_with_a_threshold_or_a_power_cannot_take() -> None:
    with pytest.raises(Mistake, match=r"loss.ring with loss.name=talos: .*turn ring off"):
        LossConfig(name="talos", ring=True)
    with pytest.raises(Mistake, match=r"loss.learn_temperature with loss.name=psl: .* leave"):
        LossConfig(name="psl", learn_temperature=True)
    section = LossConfig(name="ssm", ring=True, learn_temperature=True)
    assert section.of("talos") == LossConfig(name="talos")
    assert section.of("psl") == LossConfig(name="psl", ring=True)
    assert section.of("sl_at_k") == LossConfig(name="sl_at_k", learn_temperature=True)
