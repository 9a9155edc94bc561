"""Configs and presets are held to their types, choices and ranges, however they come about."""

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest

from trainer.base.mistake import Mistake
from trainer.base.typed import Range, check, fields_of, read_as
from trainer.command_line import TrainArguments, parse_preset
from trainer.config.model_section import ModelConfig
from trainer.config.optimizer_section import OptimizerConfig
from trainer.config.presets import PRESETS, find_preset
from trainer.config.sections import Config
from trainer.config.training_section import TrainingConfig

WRONG: list[tuple[Any, str]] = [
    (
        {"model": {"tower": "nope"}},
        "model.tower='nope': must be one of mf, mlp, dcn, history",
    ),
    ({"model": {"similarity": "cosin"}}, "did you mean 'cosine'?"),
    (
        {"model": {"dim": "64"}},
        "model.dim='64': must be a whole number, at least 1",
    ),
    ({"model": {"dim": 64.0}}, "model.dim=64.0: must be a whole number"),
    ({"model": {"dim": 10**30}}, "at most 1,024"),
    ({"model": {"dim": 1025}}, "at most 1,024"),
    ({"model": {"use_history": "false"}}, "model.use_history='false': must be true or false"),
    ({"model": {"use_history": 0}}, "must be true or false"),
    ({"model": {"output_dim": 0}}, "model.output_dim=0: must be a whole number, at least 1"),
    ({"model": {"hidden": 128}}, "model.hidden=128: must be a list"),
    ({"model": {"hidden": [["a"]]}}, r"model.hidden\[0\]=\['a'\]: must be a whole number"),
    ({"model": {"hidden": "128"}}, "model.hidden='128': must be a list"),
    (
        {"model": {"dropout": None}},
        "model.dropout=None: must be a finite number, at least 0",
    ),
    ({"model": {"dropout": 1}}, "below 1"),
    ({"model": {"init_std": float("inf")}}, "init_std=inf: must be a finite number, above 0"),
    ({"model": {"sequence_length": 10**9}}, "at most 10,000"),
    ({"model": {"sequence_layers": 10**4}}, "at most 64"),
    ({"model": {"table_precision": "int8"}}, "must be one of fp32, fp16"),
    ({"model": {"dmi": 3}}, "unknown field model.dmi: did you mean 'dim'?"),
    ({"modle": {}}, "unknown field modle: did you mean 'model'?"),
    ({"model": None}, "model=None: must be an object of tower, dim"),
    ({"optimizer": {"tables": None}}, "optimizer.tables=None: must be one of rowwise_adagrad"),
    ({"optimizer": {"table_learning_rate": 1e9}}, "at most 10,000"),
    (
        {"optimizer": {"tower_learning_rate": float("nan")}},
        "tower_learning_rate=nan: must be",
    ),
    ({"optimizer": {"schedule": "nope"}}, "one of constant, linear, cosine"),
    ({"training": {"epochs": 1.5}}, "training.epochs=1.5: must be a whole number, at least 1"),
    ({"training": {"epochs": True}}, "training.epochs=True: must be a whole number"),
    ({"training": {"seed": None}}, "training.seed=None: must be a whole number"),
    ({"training": {"seed": -1}}, "training.seed=-1"),
    ({"training": {"threads": 100_000}}, "training.threads=100000: .*at most 1,024"),
    ({"training": {"threads": -1}}, "training.threads=-1: .*at least 0"),
    ({"training": {"global_batch_size": 10**12}}, "at most 16,777,216"),
    ({"training": {"global_batch_size": 1}}, "leaves no negatives in the batch"),
    ({"training": {"global_batch_size": 1}, "loss": {"name": "bpr"}}, "leaves no negatives"),
    ({"negatives": {"uniform": 10**12}}, "negatives.uniform=1000000000000: .*at most 16,777,216"),
    ({"negatives": {"queue": 10**12}}, "negatives.queue"),
    ({"negatives": {"in_batch": "no"}}, "negatives.in_batch='no': must be true or false"),
    ({"negatives": {"log_q": "nope"}}, "negatives.log_q='nope': .*must be one of none, counts"),
    (
        {"loss": {"temperature": "0.1"}},
        "loss.temperature='0.1': must be .*, or none",
    ),
    (
        {"loss": {"negative_weight": -1}},
        "loss.negative_weight=-1: must be .*above 0",
    ),
    ({"loss": {"precision": "fp8"}}, "must be one of fp32, bf16"),
    ({"loss": {"correction": "nope"}}, "loss.correction='nope'"),
    ({"data": {"train_splits": None}}, "data.train_splits=None: must be a list"),
    ({"data": {"train_splits": ["train", "test"]}}, "the test split is never trained on"),
    ({"data": {"skip_corrupt": "no"}}, "data.skip_corrupt='no'"),
    ({"checkpoint": {"keep": "2"}}, "checkpoint.keep='2'"),
    ({"evaluation": {"patience": -1, "every_epochs": 1}}, "evaluation.patience=-1: .*at least 1"),
    ({"evaluation": {"patience": 0, "every_epochs": 1}}, "evaluation.patience=0"),
    ({"evaluation": {"every_epochs": -1}}, "evaluation.every_epochs=-1"),
    ({"evaluation": {"k": "20"}}, "evaluation.k='20': must be a list"),
    ({"evaluation": {"k": []}}, r"evaluation.k=\[\]: must be a list, .*their number at least 1"),
    ({"evaluation": {"metric": "ndgc@20"}}, "did you mean 'ndcg'\\?"),
    ({"evaluation": {"metric": "disliked@20"}}, "must be one of recall"),
    ({"evaluation": {"metric": "ndcg"}}, "as in ndcg@20"),
    ({"metrics": {"host": 5}}, "metrics.host=5: must be text"),
    ([1], "must be an object of data, model"),
    (None, "None: must be an object"),
    (5, "5: must be an object"),
]


@pytest.mark.parametrize(("contents", "said"), WRONG, ids=lambda each: str(each)[:40])
def test_a_wrong_config_is_refused_in_one_line(contents: Any, said: str) -> None:
    with pytest.raises(Mistake, match=said) as told:
        Config.from_json(contents)
    assert "\n" not in str(told.value)


def test_python_is_held_to_the_same() -> None:
    for make in (
        lambda: ModelConfig(tower="nope"),  # type: ignore[arg-type]
        lambda: replace(TrainingConfig(), epochs=1.5),  # type: ignore[arg-type]
        lambda: OptimizerConfig(table_learning_rate=float("nan")),
        lambda: Config(model=None),  # type: ignore[arg-type]
    ):
        with pytest.raises(Mistake):
            make()


def test_flags_are_held_to_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (
        ("--training.global-batch-size", "1"),
        ("--model.dim", "1000000000"),
        ("--optimizer.table-learning-rate", "inf"),
        ("--evaluation.patience", "-1"),
    ):
        with pytest.raises((SystemExit, Mistake)) as ended:
            parse_preset(["demo", "--data", "D", "--out", "R", flag, value], "t", TrainArguments)
        assert getattr(ended.value, "code", 2) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_json_says(name: str) -> None:
    config = PRESETS[name]()
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_every_number_of_a_config_has_its_range() -> None:
    """A new field without one would take anything again."""

    def bare(kind: Any) -> bool:
        if getattr(kind, "__metadata__", None):
            limited = any(isinstance(each, Range) for each in kind.__metadata__)
            return not limited and bare(kind.__origin__)
        arms = getattr(kind, "__args__", ())
        return kind in (int, float) or any(bare(arm) for arm in arms)

    for section in fields(Config):
        hints = fields_of(get_type_hints(Config)[section.name])
        assert [name for name, kind in hints.items() if bare(kind)] == [], section.name


def test_preset_files_that_are_none(tmp_path: Path) -> None:
    """Each is told by its name; none is waited for, none fills the memory."""
    contents = {
        "text": b"tower: mlp",
        "latin": b'model = {tower = "\xff"}',
        "deep": b"a = " + b"[" * 100_000,
        "digits": b"model = {dim = " + b"9" * 5000 + b"}",
        "section": b"[model]\ntower = 7",
    }
    for name, text in contents.items():
        (tmp_path / f"{name}.toml").write_bytes(text)
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "fifo.toml")
    for name in (*contents, "zero", "folder", "fifo", "absent"):
        path = tmp_path / f"{name}.toml"
        with pytest.raises(Mistake, match=f"preset file {path}(, line 2)?: ") as told:
            find_preset(str(path))
        assert "\n" not in str(told.value)


@dataclass(frozen=True)
class Inner:
    at: Annotated[int, Range(least=0)]


@dataclass(frozen=True)
class Outer:
    rate: float
    parts: dict[str, tuple[Inner, ...]]
    either: int | str = 0
    words: tuple[Annotated[str, Range(most=3)], ...] = ()

    def __post_init__(self) -> None:
        check(self, "outer")


def test_objects_within_objects() -> None:
    read = read_as(Outer, {"rate": 1, "parts": {"a": [{"at": 2}]}, "words": ["abc"]})
    assert read == Outer(1.0, {"a": (Inner(2),)}, words=("abc",))
    assert type(read.rate) is float
    for wrong, said in (
        ({"parts": {}}, "rate missing"),
        (
            {"rate": 1, "parts": {"a": [{"at": -1}]}},
            r"parts.a\[0\].at=-1: must be a whole",
        ),
        ({"rate": 1, "parts": {"a": [{}]}}, r"parts.a\[0\].at missing"),
        ({"rate": 1, "parts": [], "either": 1.5}, r"parts=\[\]: must be an object"),
        ({"rate": 1, "parts": {}, "either": 1.5}, "either=1.5: must be a whole number or text"),
        (
            {"rate": 1, "parts": {}, "words": ["abcd"]},
            r"words\[0\]='abcd': must be text",
        ),
        ({"rate": 10**400, "parts": {}}, "rate=.*must be a finite number"),
    ):
        with pytest.raises(Mistake, match=said):
            read_as(Outer, wrong)
