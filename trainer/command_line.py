"""`train PRESET --data DIR --out RUN [--section.field VALUE]`, parsed; also under torchrun."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro

from losses.choices import LOSSES
from trainer.base.mistake import Mistake
from trainer.base.ranges import check_given, check_ranges
from trainer.base.screen import words_escaped
from trainer.base.terminal.first_word import clear_loading_line
from trainer.base.typed import nearest
from trainer.config.preset_file import as_toml
from trainer.config.presets import PRESETS, find_preset
from trainer.config.sections import Config, settings_of
from trainer.config.short_help import ALL, MORE, PRINT, short_kind
from trainer.files.filesystems import absolute
from trainer.files.paths import LastingPath, with_paths
from trainer.run.folder import Resume, RunSpec
from trainer.start_settings import Start, recorded_name

MOST_GPUS = 1 << 20
HELP = {"--help", "-h", ALL}
RESUMES: dict[str, Resume] = {"never": False, "always": True, "auto": "auto"}


@dataclass(frozen=True)
class TrainArguments:
    """Train a two-tower model; every field of its config can be set by --section.field VALUE."""

    data: LastingPath
    """Folder of a prepared dataset."""
    out: LastingPath
    """Folder for the run: config, metrics, checkpoints."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: Literal["never", "always", "auto"] = "never"
    """Go on from the newest checkpoint in --out. Without a value: always, and there has to be a run
    there; auto: begin one where there is none, so that one command line serves every start."""
    start_from: LastingPath | None = None
    """A run on these data, or on what they were appended to: a new run begins with the values of
    its best checkpoint, else its newest, wherever names and shapes agree."""

    windows: bool = False
    """Train window by window of data that were prepared in windows of time, or appended to: small
    ones several times, each evaluated on before it is trained on, and a checkpoint after each."""
    follow: bool = False
    """With --windows: wait for windows that are appended, until Ctrl-C or SIGTERM."""
    export_to: LastingPath | None = None
    """With --windows: folder for a Parquet file a window, of the items whose vectors changed."""

    def __post_init__(self) -> None:
        check_given(self, ("data", "out", "start_from", "export_to"))
        for flag, given in (("--follow", self.follow), ("--export-to", self.export_to)):
            if given and not (self.windows or self.config.data.windows):
                raise Mistake(f"{flag} goes with --windows: add it, or leave {flag} out")

    def run_spec(self, preset: str, given: Iterable[str] = ()) -> RunSpec:
        """Paths are absolute: workers, and whoever goes on with the run, stand elsewhere.

        given: names of the settings that flags set.
        """
        parsed = with_paths(self, absolute)
        config = parsed.config
        if self.windows:
            config = replace(config, data=replace(config.data, windows=True))
        return RunSpec(
            preset,
            config,
            parsed.data,
            parsed.out,
            RESUMES[self.resume],
            start_from=parsed.start_from,
            follow=self.follow,
            export_to=parsed.export_to,
            given=frozenset(given),
        )


@dataclass(frozen=True)
class PlanArguments:
    """Plan a run on a cluster that is not there; every field of the preset's config can be set.
    Exit status 3: it does not fit."""

    data: LastingPath
    """Folder of a prepared dataset: its numbers of users, items and attributes."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    gpus: int | None = None
    """GPUs of the cluster. Left out: those of --address, else of this machine, else 8."""
    gpu_memory: str | None = None
    """Memory of each GPU, as 80GB or 80GiB. Left out: of this machine's GPUs, else 80GB."""
    gpus_a_node: int | None = None
    """GPUs of one machine. Left out: as many as the largest has, else 8."""
    address: str | None = None
    """Ray cluster whose GPUs are counted ("auto": the one of this machine). Left out: RAY_ADDRESS,
    else this machine's GPUs are."""
    json: bool = False
    """Print the plan as JSON."""

    def __post_init__(self) -> None:
        check_given(self, ("data",))
        limits = dict.fromkeys(("gpus", "gpus_a_node"), (1, MOST_GPUS))
        given = {name: limit for name, limit in limits.items() if vars(self)[name] is not None}
        check_ranges(self, **given)


Parsed = TypeVar("Parsed")


def parse_preset(arguments: Sequence[str], program: str, kind: type[Parsed]) -> tuple[str, Parsed]:
    """Parse `PRESET --flags` into `kind`: the preset's config is the default of its `config`.
    Without PRESET see `Start.preset`.

    Unknown flags end the process with status 2 and the nearest known ones; --help, --help-all and
    --print-config with status 0.

    Raises:
        Mistake: where the preset is unknown.
    """
    is_named = bool(arguments) and not arguments[0].startswith("-")
    flags = _resume_spelt_out(arguments[is_named:])
    start = Start(
        arguments[0] if is_named else None,
        _value(flags, "--data"),
        _value(flags, "--out") if RESUMES.get(_value(flags, "--resume") or "", False) else None,
        _value(flags, "--start-from"),
    )
    preset = start.preset
    changed = bool(settings_given(flags))
    config = find_preset(preset) if HELP & set(flags) else start.config(changed)
    config = _defaults(config, flags)
    if PRINT in flags:
        _print_config(preset, config, [flag for flag in flags if flag != PRINT], program)
    if {"--help", "-h"} & set(flags):
        clear_loading_line()
        words = f"{kind.__doc__}\n\n{MORE}\n\nPresets: {', '.join(PRESETS)}."
        shown = short_kind(kind, config)
        tyro.cli(shown, args=["--help"], prog=f"{program} [PRESET]", description=words)
    with words_escaped(flags):
        parsed = tyro.cli(
            kind,
            args=["--help" if flag == ALL else flag for flag in flags],
            default=kind(**{**_missing(kind), "config": config}),
            prog=f"{program} [PRESET]",
            description=f"{kind.__doc__}\n\nPresets: {', '.join(PRESETS)}.",
        )
    return recorded_name(preset), parsed


def _resume_spelt_out(flags: Sequence[str]) -> list[str]:
    """`--resume` alone as `--resume always`; a value that follows it stays its own."""
    return [
        "--resume=always" if flag == "--resume" and follower.startswith("-") else flag
        for flag, follower in pairwise([*flags, "--"])
    ]


def _missing(kind: type) -> dict[str, Any]:
    """What tyro asks for: the fields that have no default."""
    return {
        field.name: tyro.MISSING
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING
    }


@dataclass(frozen=True)
class PrintArguments:
    """Print a preset as a file, with what flags change."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    data: LastingPath | None = None
    """Folder of a prepared dataset, which `default` is fitted to."""


def _print_config(preset: str, config: Config, flags: list[str], program: str) -> NoReturn:
    """Write the config as a preset file to standard output, and end."""
    prog = f"{program} PRESET {PRINT}"
    with words_escaped(flags):
        parsed = tyro.cli(PrintArguments, args=flags, default=PrintArguments(config), prog=prog)
    title = (
        f"From the preset {preset}. Give this file in its place: {program} FILE ... A setting that "
        'is left out has Tandem\'s plainest default; "none" stands for nothing.'
    )
    sys.stdout.write(as_toml(parsed.config, title))
    raise SystemExit(0)


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


def overridden(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config with settings by name, as flags set them: `{"loss.name": "bsl"}`.

    Raises:
        Mistake: for a name that is unknown, with the nearest, or a value that is not allowed.
    """
    name = overrides.get("loss.name", config.loss.name)
    loss = config.loss.of(name) if name in LOSSES else config.loss
    changed = {**config.to_json(), "loss": dataclasses.asdict(loss)}
    known = list(settings_of(changed))
    for setting, value in overrides.items():
        if setting not in known:
            raise Mistake(f"overrides: unknown setting {setting!r}: {_hint(setting, known)}")
        section, _, name = setting.partition(".")
        changed[section][name] = value
    return Config.from_json(changed)


def settings_given(flags: Sequence[str]) -> set[str]:
    """Names of what flags set: of `--model.no-use-user-id` model.use_user_id."""
    names = {
        flag.partition("=")[0].removeprefix("--").replace("-", "_")
        for flag in flags
        if flag.startswith("--")
    }
    names |= {name.replace(".no_", ".", 1) for name in names}
    return names & settings_of(Config().to_json()).keys()


def _hint(setting: str, known: Sequence[str]) -> str:
    return nearest(setting, known) or f"settings are like {known[0]}; `tandem train --help-all`"


def _value(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag, given as `--name VALUE` or `--name=VALUE`."""
    for place, flag in enumerate(flags):
        if flag == name and place + 1 < len(flags):
            return flags[place + 1]
        if flag.startswith(f"{name}="):
            return flag.removeprefix(f"{name}=")
    return None
