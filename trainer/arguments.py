"""`train PRESET --data DIR --out RUN [--section.field VALUE]`, parsed; also under torchrun."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import tyro

from trainer.config import Config
from trainer.flags import check_given, check_ranges
from trainer.mistake import Mistake
from trainer.presets import PRESETS, find_preset
from trainer.run import RunSpec, absolute

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
    missing = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING
    }
    parsed = tyro.cli(
        kind,
        args=flags,
        default=kind(**{**missing, "config": find_preset(preset)}),
        prog=f"{program} PRESET",
        description=f"{kind.__doc__}\n\nPresets: {', '.join(PRESETS)}.",
    )
    return preset, parsed
