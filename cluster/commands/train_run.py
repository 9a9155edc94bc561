"""`tandem train PRESET --data DIR --out RUN [--workers N] [--section.field VALUE]`.

Imports torch and torchrec: `check_versions` comes before the import of this module.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from pyarrow.lib import ArrowException
from pyarrow.parquet import ParquetFile

from cluster.workers.counts import Workers
from cluster.workers.options import LaunchOptions
from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.base.usage import expect_preset, parse
from trainer.command_line import TrainArguments, parse_preset, settings_given
from trainer.config.presets import PRESETS
from trainer.data.schema import Dataset
from trainer.effort.choices import Effort
from trainer.effort.decided import as_decided
from trainer.files.filesystems import absolute
from trainer.files.paths import LastingPath
from trainer.files.storage import storage_path
from trainer.fitting import blind_spots, precheck
from trainer.observe.choice import Choice, read_choice
from trainer.observe.progress import in_words
from trainer.observe.waiting import waits_on_terminal
from trainer.run.asked.beside import joined_with
from trainer.run.folder import RunFolder, RunSpec


@dataclass(frozen=True)
class OnRay:
    """How workers are started."""

    workers: str | None = None
    """How many workers: 4; or 2..8 where nodes may come and go: an autoscaler is asked for those
    that are missing. Left out: one a GPU, or one for every second CPU."""
    device: Literal["auto", "gpu"] = "auto"
    """What each worker trains on: GPUs where the cluster has some, else CPUs; gpu: nothing else,
    and a range of workers waits for them where an autoscaler brings them."""
    address: str | None = None
    """Ray cluster to train on ("auto": the one of this machine). Left out: RAY_ADDRESS, else a
    local cluster for this run alone."""
    max_failures: int = 3
    """Restarts after failures, from the last checkpoint; a newer one since then starts the count
    anew."""
    step_timeout: float = 600.0
    """Seconds without a step, a block of an evaluation or other progress, after which workers count
    as hung; three times as many while they start, restore or save."""
    resize_every: float = 30.0
    """Seconds between two looks for room to grow, with --workers LEAST..MOST."""
    patience: float = 600.0
    """Seconds that a run waits for room for its workers, or for the least of a range."""
    discovery_port: int = 9480
    """First port tried for the list of metrics endpoints that Prometheus reads."""
    discovery_host: str = "127.0.0.1"
    """Address that list is served on; 0.0.0.0 where Prometheus runs elsewhere."""

    def options(self, verbose: bool) -> LaunchOptions:
        return LaunchOptions(
            workers=None if self.workers is None else Workers.parse(self.workers),
            device=self.device,
            address=self.address,
            max_failures=self.max_failures,
            step_timeout_seconds=self.step_timeout,
            resize_seconds=self.resize_every,
            patience_seconds=self.patience,
            discovery_port=self.discovery_port,
            discovery_host=self.discovery_host,
            verbose=verbose,
        )


@dataclass(frozen=True)
class TrainOnRay(OnRay, TrainArguments):
    """Train a two-tower model on Ray; every field of its config can be set by --section.field."""

    effort: Effort | None = None
    """Of the preset default; left out: normal. quick: its rules by the data. normal: up to five
    models are tried, and the best on validation is trained on train and validation. best: two of
    them, their scores added, where that finds more."""


@dataclass(frozen=True)
class ResumeArguments(OnRay):
    """Go on with a run from its newest checkpoint, with the config and data it was started with."""

    run: Annotated[LastingPath, tyro.conf.Positional] = tyro.MISSING
    """Folder of the run."""

    def run_spec(self) -> RunSpec:
        before = RunFolder(self.run).read_config()
        out = absolute(self.run)
        return RunSpec(before.preset, before.config, before.named_data, out, resume=True)


def main(arguments: Sequence[str], verbose: bool) -> int:
    """Train on Ray, and say where the run lies."""
    preset, parsed = parse_train(arguments)
    spec = as_decided(parsed.run_spec(preset, settings_given(arguments)))
    return train(spec, parsed.options(verbose), parsed.effort)


def resume(arguments: Sequence[str], verbose: bool) -> int:
    """Go on with a run, and say where it lies."""
    parsed = parse(ResumeArguments, "tandem resume", arguments)
    return train(parsed.run_spec(), parsed.options(verbose))


def train(
    spec: RunSpec,
    options: LaunchOptions,
    effort: Effort | None = None,
) -> int:
    """Check, try what the effort allows, train, report."""
    loading = time.monotonic()
    with waits_on_terminal("loading torch and Ray"):
        precheck(spec, options.is_here)
        # Ray Train and torch: seconds, and mistakes are told before.
        from cluster.workers.ray_workers import RayWorkers
        from trainer.effort.choose import chosen
        from trainer.effort.two_models import train_second
        from trainer.train import resumable, train_on_rank

    began = time.monotonic()
    asked = spec
    spec = chosen(asked, effort, None if options.is_here else RayWorkers(options))
    tries = time.monotonic() - began
    summary = RayWorkers(options).run(train_on_rank, spec, resumable(spec))
    second = train_second(spec, summary, RayWorkers(options))
    if second is not None:
        summary = {**summary, **{key: summary[key] + second[key] for key in ("seconds", "steps")}}
    took = Took(tries, summary["seconds"], time.monotonic() - loading)
    is_new = spec is not asked or summary["quality"] is None
    choice = read_choice(storage_path(spec.out)) if is_new else None
    for line in ending(summary, spec, took, choice):
        say(line)
    for line in blind_spots_of(spec):
        say(line)
    for label, command in following(spec):
        say(label, command=command)
    say(f"the run: {spec.out}")
    return 0


@dataclass(frozen=True)
class Took:
    """Seconds of a command."""

    tries: float
    training: float
    """Of the last group of workers, evaluations and checkpoints with it; of both models where there
    are two."""
    whole: float

    def __str__(self) -> str:
        parts = [
            *([f"{in_words(self.tries)} trying models"] if self.tries >= 1 else []),
            f"{in_words(self.whole - self.tries - self.training)} loading and starting workers",
            f"{in_words(self.training)} training",
        ]
        return f"{in_words(self.whole)}: {', '.join(parts)}"


def ending(
    summary: dict[str, Any], spec: RunSpec, took: Took, choice: Choice | None = None
) -> Iterator[str]:
    """What was trained, how good it was at its best, how long it took. `choice`: of this start."""
    quality, workers = summary["quality"], summary["workers"]
    epochs = spec.config.training.epochs
    if quality is not None and quality["out_of_patience"] and summary["epochs"] < epochs:
        yield (
            f"stopped early, after epoch {summary['epochs']} of {epochs}: validation "
            f"{quality['metric']} was best after epoch {quality['epoch']}, and "
            f"{spec.config.evaluation.patience} evaluations since (--evaluation.patience) brought "
            "nothing better"
        )
    if quality is None and choice is not None:
        yield choice.told()
    if quality is not None:
        beside = ""
        if quality["popularity"]:
            times = quality["value"] / quality["popularity"]
            beside = f", {times:.2f} times popularity ({quality['popularity']:.4f})"
        yield (
            f"best {quality['metric']} {quality['value']:.4f} on validation, after epoch "
            f"{quality['epoch']}{beside}"
        )
        if choice is not None and choice.second is None and choice.best.value > quality["value"]:
            yield (
                f"when it was tried it had {choice.best.value:.4f}: another training, of other "
                "epochs, ends elsewhere"
            )
    hands = "worker" if workers == 1 else "workers"
    yield f"trained {summary['steps']:,} steps with {workers} {hands} in {took}"


def blind_spots_of(spec: RunSpec) -> list[str]:
    """`blind_spots`, where this machine sees the data."""
    try:
        beside = joined_with(storage_path(spec.out))
        configs = [spec.config] if beside is None else [spec.config, beside.config]
        return list(blind_spots(Dataset.load(spec.data, verify="none"), *configs))
    except (OSError, Mistake):
        return []


def following(spec: RunSpec) -> list[tuple[str, list[str]]]:
    """Commands that come next, each behind its label."""
    asked = asked_of(some_user(spec.data))
    commands = [["evaluate", spec.out, "--split", "test"], ["recommend", spec.out, *asked]]
    commands.append(["report", spec.out])
    labels = ["next:", *["     "] * (len(commands) - 1)]
    return [(label, ["tandem", *command]) for label, command in zip(labels, commands, strict=True)]


def asked_of(user: str) -> list[str]:
    """The flag as the command line takes it."""
    return [f"--user={user}"] if user.startswith("-") else ["--user", user]


def some_user(data: str) -> str:
    """An id that a user of the data has; where they are not seen from here, a word for one."""
    try:
        with (storage_path(data) / "users.parquet").open("rb") as stream:
            found = next(ParquetFile(stream).iter_batches(batch_size=1, columns=["raw_id"]))
        return str(found["raw_id"][0])
    except (OSError, Mistake, ArrowException, StopIteration, IndexError):
        return "ID"


def parse_train(arguments: Sequence[str]) -> tuple[str, TrainOnRay]:
    """Preset and flags."""
    expect_preset("tandem train", arguments, list(PRESETS))
    preset, parsed = parse_preset(arguments, "tandem train", TrainOnRay)
    assert isinstance(parsed, TrainOnRay)
    return preset, parsed
