"""`train PRESET --data DIR --out RUN [--section.field VALUE]`, parsed; also under torchrun."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import tyro

from losses.choices import LOSSES
from trainer.base.ending import is_first_rank
from trainer.base.mistake import Mistake
from trainer.base.ranges import check_given, check_ranges
from trainer.base.screen import say, words_escaped
from trainer.config.default_preset import explain
from trainer.config.presets import PRESETS, find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.run.folder import RunFacts, RunFolder, RunSpec, absolute

MOST_GPUS = 1 << 20


@dataclass(frozen=True)
class TrainArguments:
    """Train a two-tower model; every field of its config can be set by --section.field VALUE."""

    data: str
    """Folder of a prepared dataset."""
    out: str
    """Folder for the run: config, metrics, checkpoints."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on from the newest checkpoint in --out."""

    def __post_init__(self) -> None:
        check_given(self, ("data", "out"))

    def run_spec(self, preset: str) -> RunSpec:
        return RunSpec(preset, self.config, absolute(self.data), absolute(self.out), self.resume)


@dataclass(frozen=True)
class PlanArguments:
    """Plan a run on a cluster that is not there; every field of the preset's config can be set.
    Exit status 3: it does not fit."""

    data: str
    """Folder of a prepared dataset: its numbers of users, items and attributes."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    gpus: int = 8
    """GPUs of the cluster."""
    gpu_memory: str = "80GB"
    """Memory of each GPU, as 80GB or 80GiB."""
    gpus_a_node: int = 8
    """GPUs of one machine."""
    json: bool = False
    """Print the plan as JSON."""

    def __post_init__(self) -> None:
        check_given(self, ("data",))
        check_ranges(self, gpus=(1, MOST_GPUS), gpus_a_node=(1, MOST_GPUS))


Parsed = TypeVar("Parsed")


def parse_preset(arguments: Sequence[str], program: str, kind: type[Parsed]) -> tuple[str, Parsed]:
    """Parse `PRESET --flags` into `kind`: the preset's config is the default of its `config`.

    Unknown flags end the process with status 2 and the nearest known ones.

    Raises:
        Mistake: where the preset is missing or unknown.
    """
    if not arguments or arguments[0].startswith("-"):
        if "--help" not in arguments and "-h" not in arguments:
            raise Mistake(f"which preset? {program} PRESET ..., one of {', '.join(PRESETS)}")
        arguments = ["default", *arguments]
    preset, *flags = arguments
    config = _defaults(_config_of(preset, flags), flags)
    missing = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING
    }
    with words_escaped(flags):
        parsed = tyro.cli(
            kind,
            args=flags,
            default=kind(**{**missing, "config": config}),
            prog=f"{program} PRESET",
            description=f"{kind.__doc__}\n\nPresets: {', '.join(PRESETS)}.",
        )
    return preset, parsed


def _defaults(config: Config, flags: Sequence[str]) -> Config:
    """What holds where no flag says otherwise: of another loss than the preset's, its defaults.

    Held to the rules of a config together with the flags, not before.
    """
    name = _value(flags, "--loss.name")
    if name not in LOSSES:
        return config
    defaults = copy.copy(config)
    object.__setattr__(defaults, "loss", config.loss.of(name))
    return defaults


def _config_of(preset: str, flags: Sequence[str]) -> Config:
    """The preset's config; `default` is fitted to --data, or as it was when --out was started."""
    if preset != "default":
        return find_preset(preset)
    data, out = _value(flags, "--data"), _value(flags, "--out")
    if data is None or {"--help", "-h"} & set(flags):
        return find_preset(preset)
    try:
        before = _before(out) if "--resume" in flags and out is not None else None
        if before is not None and before.preset == preset:
            return before.config
        dataset = Dataset.load(data, verify="none")
    except Mistake:  # told by whoever reads them in earnest
        return find_preset(preset)
    except Exception as error:  # noqa: BLE001  of any storage; workers may be able to read it
        _say_first(f"default, for data that cannot be read here: {error}")
        return find_preset(preset)
    config = find_preset(preset, dataset)
    _say_first(explain(config, dataset))
    return config


def _say_first(line: str) -> None:
    if is_first_rank():
        say(line, file=sys.stderr)


def _before(out: str) -> RunFacts | None:
    """What config.json says of the run at `out`, where one was begun there."""
    folder = RunFolder(out)
    return folder.read_config() if (folder.path / "config.json").is_file() else None


def _value(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag, given as `--name VALUE` or `--name=VALUE`."""
    for place, flag in enumerate(flags):
        if flag == name and place + 1 < len(flags):
            return flags[place + 1]
        if flag.startswith(f"{name}="):
            return flag.removeprefix(f"{name}=")
    return None
