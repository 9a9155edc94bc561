"""`tandem tune PRESET --data DIR --out OUT --trials 20`: settings searched on the validation split.

Each trial is one worker that runs `run_worker` on a config of its own; ASHA stops the trials that
fall behind. The end is a table (trials.txt, trials.json), a page (trials.html) and a preset file
(best.toml) that `tandem train` takes in a preset's place. The test split is never looked at.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import ray
import tyro
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from cluster.tune.drawn import apply_settings, draw_settings
from cluster.tune.trials_page import write_page
from cluster.workers.options import existing_address
from cluster.workers.session import ray_session
from losses.choices import LOSSES, LossName
from trainer.base.mistake import Mistake
from trainer.base.ranges import MOST, check_given, check_ranges
from trainer.base.screen import say
from trainer.command_line import parse_preset
from trainer.config.preset_file import as_toml
from trainer.config.sections import Config
from trainer.distributed.hooks import Hooks
from trainer.files.filesystems import absolute, is_uri, local_path
from trainer.files.paths import LastingPath, with_paths
from trainer.fitting import precheck
from trainer.observe.progress import Progress, SilentProgress, TerminalProgress
from trainer.run.folder import RunSpec

GRACE_EVALUATIONS = 2
MOST_TRIALS = 10_000


@dataclass(frozen=True)
class TuneArguments:
    """Search loss, temperature and learning rates on the validation split."""

    data: LastingPath
    """Folder of a prepared dataset."""
    out: LastingPath
    """Folder for the trials' runs, the table, the page and the preset file."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    trials: int = 20
    """Settings tried."""
    losses: tuple[LossName, ...] = ()
    """Losses tried, in turns; left out: the preset's alone."""
    at_once: int = 1
    """Trials that run side by side; each has one worker."""
    address: str | None = None
    """Ray cluster to run on; left out: RAY_ADDRESS, else this machine."""
    seed: int = 0
    """Seeds the search."""

    def __post_init__(self) -> None:
        check_given(self, ("data", "out", "address"))
        check_ranges(self, trials=(1, MOST_TRIALS), at_once=(1, MOST_TRIALS), seed=(0, MOST))
        if self.trials < len(self.losses):
            raise Mistake(
                f"--trials {self.trials}: {len(self.losses)} losses take turns, so at least "
                f"{len(self.losses)}"
            )
        for settings in draw_settings(self.config, self.losses, len(self.losses), self.seed):
            apply_settings(self.config, settings)  # refuses a loss that cannot have these negatives


@dataclass(frozen=True)
class Trial:
    """One trial: finished, stopped early, or failed."""

    number: int
    settings: dict[str, Any]
    best: float
    """Best value of the watched metric on validation; nan if it failed before its first."""
    epochs: int
    curve: tuple[float, ...]
    status: Literal["finished", "stopped early", "failed"]


def run_trial(space: dict[str, Any], spec: RunSpec) -> None:
    """In a Ray worker: train one config, reporting each evaluation to the scheduler."""
    own = trial_spec(spec, space["settings"], tune.get_context().get_trial_id())
    metric = spec.config.evaluation.metric

    def report(values: dict[str, float]) -> None:
        tune.report({"metric": values[metric], "training_iteration": int(values["epoch"]) + 1})

    # torchrec is imported in workers only
    from trainer.launch.here import Here
    from trainer.train import train_on_rank

    Here(SilentProgress(), Hooks(on_evaluation=report)).run(train_on_rank, own)


def trial_spec(spec: RunSpec, settings: dict[str, Any], name: str) -> RunSpec:
    """Of a trial's own run."""
    config = apply_settings(spec.config, settings)
    return replace(spec, config=config, out=f"{spec.out}/runs/{name}")


def search(spec: RunSpec, arguments: TuneArguments, progress: Progress) -> list[Trial]:
    """Run the trials on the connected Ray; best first."""
    epochs = spec.config.training.epochs
    every = max(spec.config.evaluation.every_epochs, 1)
    scheduler = ASHAScheduler(
        time_attr="training_iteration",
        max_t=epochs,
        grace_period=min(GRACE_EVALUATIONS * every, epochs),
    )
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, spec=spec), {"cpu": 1, "gpu": gpus}
    )
    drawn = draw_settings(spec.config, arguments.losses, arguments.trials, arguments.seed)
    tuner = tune.Tuner(
        trainable,
        param_space={"settings": tune.grid_search(drawn)},
        tune_config=tune.TuneConfig(
            metric="metric",
            mode="max",
            max_concurrent_trials=arguments.at_once,
            scheduler=scheduler,
        ),
        run_config=tune.RunConfig(
            storage_path=f"{spec.out}/ray",
            verbose=0,
            callbacks=[_Narrator(progress, arguments.trials)],
        ),
    )
    return best_first(
        [trial_of(number, result, epochs, every) for number, result in enumerate(tuner.fit())]
    )


def best_first(trials: Iterable[Trial]) -> list[Trial]:
    """By their best value; those that failed come last, whatever they reached before."""

    def rank(trial: Trial) -> tuple[bool, float]:
        return trial.status == "failed", math.inf if math.isnan(trial.best) else -trial.best

    return sorted(trials, key=rank)


class _Narrator(tune.Callback):
    """Tells the terminal how far the search is."""

    def __init__(self, progress: Progress, trials: int) -> None:
        self._progress, self._trials, self._done = progress, trials, 0
        self._best = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Ray stores the search, callbacks included; a terminal cannot be stored."""
        return {**self.__dict__, "_progress": SilentProgress()}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._best = max(self._best, result["metric"])
        self._progress.update("tuning", self._done, self._trials, best=self._best)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._done += 1
        self._progress.update("tuning", self._done, self._trials, best=self._best)


def trial_of(number: int, result: Any, epochs: int, every: int) -> Trial:
    """What became of a trial of so many epochs, evaluated after each `every` of them."""
    frame = result.metrics_dataframe
    curve = () if frame is None else tuple(float(value) for value in frame["metric"])
    reached = 0 if frame is None else int(frame["training_iteration"].max())
    last_evaluated = epochs // every * every
    status: Literal["finished", "stopped early", "failed"]
    status = (
        "failed" if result.error else "finished" if reached >= last_evaluated else "stopped early"
    )
    settings = dict(result.config["settings"])
    best = max(filter(math.isfinite, curve), default=math.nan)
    return Trial(number, settings, best, reached, curve, status)


def write_results(trials: Sequence[Trial], spec: RunSpec, out: Path) -> None:
    """Of trials, best first: trials.txt, trials.json, trials.html and best.toml."""
    metric = spec.config.evaluation.metric
    records = [
        {**trial.__dict__, "best": None if math.isnan(trial.best) else trial.best}
        for trial in trials
    ]
    (out / "trials.txt").write_text(table(trials, metric))
    (out / "trials.json").write_text(json.dumps({"metric": metric, "trials": records}, indent=1))
    write_page(trials, metric, spec.preset, spec.data, out / "trials.html")
    best = apply_settings(spec.config, trials[0].settings)
    best = replace(best, metrics=spec.config.metrics, evaluation=spec.config.evaluation)
    found = f"{spec.preset}, searched: validation {metric} {trials[0].best:.4f}"
    (out / "best.toml").write_text(as_toml(best, found))


def table(trials: Sequence[Trial], metric: str) -> str:
    """The trials, best first, in plain lines of at most 80 characters."""
    rows = [("trial", "loss", "temperature", "table lr", "tower lr", "epochs", "best", "")]
    for trial in trials:
        drawn = trial.settings
        has_temperature = LOSSES[drawn["loss.name"]].usual_temperature is not None
        rows.append(
            (
                str(trial.number),
                drawn["loss.name"],
                f"{drawn['loss.temperature']:.3g}" if has_temperature else "-",
                f"{drawn['optimizer.table_learning_rate']:.3g}",
                f"{drawn['optimizer.tower_learning_rate']:.3g}",
                str(trial.epochs),
                f"{trial.best:.4f}",
                trial.status.partition(" ")[0],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([f"validation {metric}, best first", *lines, ""])


def main(arguments: Sequence[str], verbose: bool) -> int:
    """Search, print the table, and say where the preset file is."""
    preset, parsed = parse_preset(arguments, "tandem tune", TuneArguments)
    if is_uri(parsed.out):
        raise Mistake(f"--out {parsed.out}: a search needs a folder that every node sees")
    out = local_path(parsed.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Mistake(f"{out} exists already; choose another --out")
    config = with_paths(parsed.config, absolute)
    spec = RunSpec(preset, config, absolute(parsed.data), str(out.resolve()))
    is_here = existing_address(parsed.address) is None
    for settings in draw_settings(config, parsed.losses, len(parsed.losses) or 1, parsed.seed):
        precheck(trial_spec(spec, settings, "trial"), is_here)
    out.mkdir(parents=True, exist_ok=True)
    with (
        ray_session(parsed.address, min_cpus=parsed.at_once, verbose=verbose),
        TerminalProgress() as progress,
    ):
        trials = search(spec, parsed, progress)
    if trials[0].status == "failed" or math.isnan(trials[0].best):
        raise Mistake(
            f"no trial came to an evaluation without failing; their logs are in {out}/ray"
        )
    write_results(trials, spec, out)
    for line in table(trials, config.evaluation.metric).splitlines():
        say(line)
    say(f"the same with plots: {out}/trials.html")
    best = [f"{out}/best.toml", "--data", parsed.data, "--out", "RUN"]
    say("the best as a preset:", command=["tandem", "train", *best])
    return 0
