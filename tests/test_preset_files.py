"""Presets in TOML: written by --print-config, read in a preset's place, told by their lines."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import cli
from trainer.base.mistake import Mistake
from trainer.base.typed import fields_of
from trainer.base.usage import expect_preset
from trainer.command_line import TrainArguments, parse_preset
from trainer.config.preset_file import as_toml, field_helps, line_of, read_preset
from trainer.config.presets import PRESETS, find_preset
from trainer.config.sections import Config
from trainer.config.short_help import SETTINGS
from trainer.files.storage import storage_path
from trainer.start_settings import recorded_name


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(as_toml(find_preset(name), "a title"))
    assert read_preset(file) == find_preset(name) == find_preset(str(file))


def test_words_that_toml_would_not_take_as_they_stand(tmp_path: Path) -> None:
    config = Config()
    odd = replace(
        config,
        metrics=replace(config.metrics, host='a"b\\c\n', advertise=None),
        model=replace(config.model, hidden=(), item_vectors=None, spectral_start=1e-7),
        data=replace(config.data, history_length=3),
    )
    (tmp_path / "my.toml").write_text(as_toml(odd, "odd"))
    assert read_preset(tmp_path / "my.toml") == odd


def test_what_a_file_leaves_out_is_as_it_is_without_one(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('loss = {name = "bsl"}\n[training]\nmax_steps = "none"\n')
    config = Config()
    assert read_preset(tmp_path / "my.toml") == replace(
        config, loss=replace(config.loss, name="bsl")
    )
    (tmp_path / "my.toml").write_text("")
    assert read_preset(tmp_path / "my.toml") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[loss]\n\nnam = "bsl"', "line 3: unknown field loss.nam: did you mean 'name'?"),
        ('[loss]\nname = "bls"', "line 2: loss.name='bls': did you mean 'bsl'?"),
        ("# x\n[los]\n", "line 2: unknown field los: did you mean 'loss'?"),
        ("[model]\ndim = 1.5\n[loss]\ndim = 2", "line 2: model.dim=1.5: must be a whole number"),
        ("[training]\nepochs = 0", "line 2: training.epochs=0: must be"),
        ("loss.name = 7", "line 1: loss.name=7: must be one of"),
        ("[model]\ndim = \n", "no TOML: Invalid value (at line 2, column 7)"),
        ("[model]\ndim = 1\ndim = 2\n", "no TOML: Cannot overwrite a value (at line 3"),
        ('[training]\nepochs = "none"', "line 2: training.epochs='none': must be a whole number"),
        ('[loss]\nname = "ssm_ntr"\nring = true', "line 3: loss.ring with loss.name=ssm_ntr"),
    ],
)
def test_the_line_is_told(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(Mistake) as told:
        read_preset(tmp_path / "my.toml")
    assert str(told.value).startswith(f"preset file {tmp_path}/my.toml")
    assert words in str(told.value) and "\n" not in str(told.value)


def test_no_line_where_none_is_meant() -> None:
    assert line_of("[loss]\nname = 3", "the query tower has no input") is None
    assert line_of("", "unknown field los") is None


def test_a_preset_is_printed_with_what_flags_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["train", "gowalla", "--loss.name", "ssm", "--model.dim=32", "--print-config"]
    with pytest.raises(SystemExit) as end:
        cli.main(flags)
    assert end.value.code == 0
    file = tmp_path / "my.toml"
    file.write_text(capsys.readouterr().out)
    data = ["--data", "d", "--out", "o"]
    _, asked = parse_preset(["gowalla", *data, *flags[2:-1]], "train", TrainArguments)
    preset, from_file = parse_preset([str(file), *data], "train", TrainArguments)
    assert from_file.config == asked.config and preset == str(file)
    _, over = parse_preset([str(file), *data, "--model.dim", "16"], "train", TrainArguments)
    assert over.config.model == replace(asked.config.model, dim=16)


def test_every_setting_stands_below_its_help() -> None:
    lines = [line for line in as_toml(Config(), "").splitlines() if line]
    settings = [at for at, line in enumerate(lines) if " = " in line and line[0] not in "#["]
    fields = sum(len(fields_of(type(section))) for section in vars(Config()).values())
    assert len(settings) == fields
    assert all(lines[at - 1].startswith("# ") for at in settings)
    assert all(len(line) <= 100 for line in lines)


def test_the_short_help_has_settings_that_there_are() -> None:
    for section, names in SETTINGS.items():
        kind = type(getattr(Config(), section))
        assert set(names) <= set(fields_of(kind)) and set(names) <= set(field_helps(kind))
    assert sum(map(len, SETTINGS.values())) <= 15


@pytest.mark.parametrize("command", ["train", "tune", "plan"])
def test_help_is_short_and_help_all_is_whole(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "demo", flag])
        assert end.value.code == 0
        shown[flag] = capsys.readouterr().out
    assert "--data" in shown["--help"] and "--help-all" in shown["--help"]
    for section, names in SETTINGS.items():
        for name in names:
            assert f"--{section}.{name}".replace("_", "-") in shown["--help"]
    assert "--loss.precision" not in shown["--help"]
    assert "--loss.precision" in shown["--help-all"]
    assert "(default: 32)" in shown["--help"]  # model.dim of this preset
    assert len(shown["--help"]) < len(shown["--help-all"]) / 2


def test_a_run_is_a_preset_and_json_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tmp_path / "run", find_preset("demo")
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"config": config.to_json()}))
    preset, parsed = parse_preset([str(run), "--data=d", "--out=o"], "train", TrainArguments)
    assert parsed.config == config and preset == str(run)
    (run / "config.json").write_text("[]")
    with pytest.raises(Mistake, match=r"neither a \.toml file nor a run"):
        find_preset(str(run))
    assert cli.main(["train", str(run / "config.json"), "--data", "d", "--out", "o"]) == 2
    assert "a preset file is TOML" in capsys.readouterr().err


def test_a_preset_lies_where_runs_may_lie(tmp_path: Path) -> None:
    """A file behind a URI was looked for on the disk; file:// was a folder of that name."""
    text = as_toml(find_preset("gowalla"), "mine")
    storage_path("memory://presets/my.toml").write_text(text)
    (tmp_path / "my.toml").write_text(text)
    for name in ("memory://presets/my.toml", f"file://{tmp_path}/my.toml"):
        assert find_preset(name) == find_preset("gowalla")
        expect_preset("tandem train", [name], ["gowalla"])
        assert recorded_name(name) == name
    with pytest.raises(Mistake, match=r"preset file memory://presets/none.toml: does not exist"):
        find_preset("memory://presets/none.toml")
    with pytest.raises(Mistake, match=r"preset memory://presets/run: neither a .toml file nor a"):
        find_preset("memory://presets/run")
