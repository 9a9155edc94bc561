"""`--effort`: from what is tried on validation to the config of the run.

quick   the preset's rules, nothing is tried; the best epoch on validation is kept
normal  up to five models, each for a third of its length, then the two best in full
best    all of them; the better half in full; the best with each other one, their scores added

What was best of all, short or in full, is then trained on train and validation, for as many epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from trainer.base.mistake import Mistake
from trainer.base.run_files import CHOICE_FILE
from trainer.command_line import overridden
from trainer.config.default_preset import default_preset
from trainer.config.sections import Config, settings_of
from trainer.data.schema import Dataset
from trainer.effort.choices import Effort
from trainer.effort.proposals import Proposal, proposals
from trainer.effort.tries import MOST_STEPS, NAME, Tried, Tries, steps_of
from trainer.effort.two_models import best_pair
from trainer.files.storage import storage_path
from trainer.fitting import fitted
from trainer.launch.launcher import Launcher
from trainer.launch.processes import Processes, most_workers
from trainer.observe.choice import Choice, TriedModel, write_choice
from trainer.observe.progress import Progress, TerminalProgress, in_words
from trainer.run.asked.beside import Beside, forget_beside, write_beside
from trainer.run.folder import RunFolder, RunSpec, open_run

Settings = dict[str, Any]
"""Values by "section.name"."""
SHORT = 1 / 3
FINALISTS = 2
"""Models that an effort of `normal` trains in full: the second of short tries may come late."""
NEAR = 0.9
"""Of the best short try: what is further behind was never the best in full."""
MOST_ROWS = 20_000_000
"""Rows trained, epoch after epoch, by what `normal` tries in full: a quarter of an hour of a core.
What is longer is watched while it trains."""
LARGE = 2_000_000
FREE = ("data.train_splits", "evaluation.every_epochs")
"""Of the final run alone: tries are trained on train and evaluated on validation."""


def chosen(spec: RunSpec, effort: Effort | None, launcher: Launcher | None) -> RunSpec:
    """`choose` with progress on the terminal.

    Args:
        effort: None: normal, of the preset default.
        launcher: of the tries; None: processes of this machine.

    Raises:
        Mistake: where an effort is asked for with another preset.
    """
    if effort is not None and spec.preset != "default":
        raise Mistake(
            f"--effort {effort} is of the preset default, not of {spec.preset}: leave it out, or "
            "search around a preset with `tandem tune`"
        )
    with TerminalProgress() as progress:
        return choose(spec, effort or "normal", launcher, progress)


def choose(
    spec: RunSpec,
    effort: Effort,
    launcher: Launcher | None,
    progress: Progress,
) -> RunSpec:
    """The spec with the best config that the effort finds; flags hold in all that is tried.

    Says what was tried and what was chosen. Not for a run that is there already.

    Args:
        launcher: of the tries; None: processes of this machine, as many as suit it.

    Raises:
        Mistake: as a start of the run, before anything is tried.
    """
    if effort == "quick" or spec.preset != "default":
        _forget_choice(spec)
        return spec
    try:
        dataset, _, is_there = open_run(spec)
    except (Mistake, OSError):
        if launcher is None:
            raise
        progress.message("nothing is tried, since this machine does not see the data or the run")
        return spec
    if is_there:
        return spec
    settings = settings_of(spec.config.to_json())
    fixed = {name: settings[name] for name in spec.given}
    fixed |= differences(default_preset(dataset), spec.config)
    found: list[Proposal] = []
    why = _nothing_to_try(spec, dataset)
    if why is None:
        found = _fitting(proposals(dataset, effort), fixed, spec, dataset)
        why = None if len(found) > 1 else "the flags leave no choice"
    if why is not None:
        _forget_choice(spec)
        progress.message(f"effort {effort}: nothing is tried, since {why}")
        return spec
    progress.message(
        f"effort {effort}: {len(found)} models are tried on the data first, which --effort quick "
        "leaves out"
    )
    launcher = launcher or Processes(1 if _is_large(dataset) else min(len(found), most_workers()))
    return _tried_out(spec, found, fixed, effort, Tries(spec, dataset, launcher, progress))


def _forget_choice(spec: RunSpec) -> None:
    """Take away what an earlier start chose, which was ended before there was a run."""
    folder = RunFolder(spec.out)
    if not folder.config_file.is_file():
        (folder.path / CHOICE_FILE).unlink(missing_ok=True)
        forget_beside(folder.path)


def _tried_out(
    spec: RunSpec, found: list[Proposal], fixed: Settings, effort: Effort, tries: Tries
) -> RunSpec:
    """The spec with the best of what was found; written beside the run, and told."""
    began, dataset, progress = time.monotonic(), tries.dataset, tries.progress
    _forget_choice(spec)
    baselines = tries.baselines(found[0].config.evaluation)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in baselines.items())
    progress.message(f"  nothing trained: {found[0].config.evaluation.metric} of {shown}")
    pair = None
    if effort == "best":
        ranked = _searched(found, tries)
        pair = best_pair(ranked, tries)
    else:
        ranked = _compared(found, tries, dataset)
    if not ranked:
        progress.message("nothing that was tried could be trained: the rules decide")
        return spec
    by_name = {each.name: (each, tried) for each, tried in ranked}
    best, tried = by_name[pair.first] if pair else ranked[0]
    is_watched = tried.is_slice or (effort == "normal" and _is_long(best, dataset))
    config = _final(best.config, tried, fixed, is_watched)
    models = [TriedModel(each.name, each.why, each.best) for _, each in ranked]
    out, beside = storage_path(spec.out), None
    if pair is not None:
        models.insert(0, TriedModel(pair.name, "the scores of both added", pair.value))
        other, its = by_name[pair.second]
        second = _final(other.config, its, fixed, is_watched)
        beside = Beside(pair.second, second, is_trained=False, weight=pair.weight)
        write_beside(out, beside)
    took, chosen = time.monotonic() - began, pair.name if pair else best.name
    added = None if pair is None else pair.second
    choice = Choice(tried.metric, chosen, took, baselines, tuple(models), tried.curve, added)
    write_choice(out, choice)
    for line in _decision(choice, config, beside):
        progress.message(line)
    return replace(spec, config=config)


def _decision(choice: Choice, config: Config, beside: Beside | None) -> Iterator[str]:
    """What was chosen, what it is trained on, and what is ahead of it though nothing is trained."""
    best = choice.best
    for name, value in choice.ahead.items():
        yield (
            f"{name}, for which nothing is trained, is ahead of all that was tried so far: "
            f"{value:.4f} beside {best.value:.4f}"
        )
    trained_on, epochs = " and ".join(config.data.train_splits), config.training.epochs
    lengths = f"{epochs} epoch{'' if epochs == 1 else 's'}"
    now = f"it is now trained on {trained_on} for {lengths}"
    if beside is not None:
        then = beside.config.training.epochs
        now = f"they are now trained on {trained_on}, one for {lengths}, the other for {then}"
    yield f"chosen: {best.name} ({best.why}), after {in_words(choice.seconds)} of tries; {now}"


Ranked = list[tuple[Proposal, Tried]]
"""Proposals that could be trained, the best first, each with the best that its tries found.

A short training may end above a long one: on small data it is the longer that overfits.
"""


def _compared(found: list[Proposal], tries: Tries, dataset: Dataset) -> Ranked:
    """Of an effort of `normal`: short tries, and the best in full, where that is not long."""
    tried = tries.of(found, SHORT)
    ranked = _ranked(found, tried)
    if not ranked or _is_long(ranked[0][0], dataset):
        return ranked
    enough = NEAR * ranked[0][1].best
    finalists = [
        proposal
        for proposal, short in ranked[:FINALISTS]
        if short.best >= enough and not _is_long(proposal, dataset)
    ]
    return _ranked(found, [*tried, *tries.of(finalists, 1.0)])


def _searched(found: list[Proposal], tries: Tries) -> Ranked:
    """Of an effort of `best`: the better half in full; all models are left for `best_pair`."""
    tried = tries.of(found, SHORT, keeps=True)
    short = _ranked(found, tried)
    better = [each for each, _ in short[: math.ceil(len(short) / 2)]]
    return _ranked(found, [*tried, *tries.of(better, 1.0, keeps=True)])


def _ranked(found: list[Proposal], tried: list[Tried]) -> Ranked:
    by_name, once = {each.name: each for each in found}, dict[str, Tried]()
    for each in best_first(tried):
        once.setdefault(each.name, each)
    return [(by_name[name], each) for name, each in once.items()]


def _is_long(each: Proposal, dataset: Dataset) -> bool:
    """Whether all of its steps are more than is tried before a run begins."""
    training, steps = each.config.training, steps_of(each.config, dataset)
    steps = min(steps, training.max_steps or steps)
    return steps > MOST_STEPS or steps * training.global_batch_size > MOST_ROWS


def _is_large(dataset: Dataset) -> bool:
    """Whether the tables of several models side by side may not fit a machine."""
    return dataset.num_users + dataset.num_items > LARGE


def best_first(tried: Sequence[Tried]) -> list[Tried]:
    """Those that were trained, by what they reached; among equals the one proposed first."""
    return sorted((each for each in tried if each.failed is None), key=lambda each: -each.best)


def _nothing_to_try(spec: RunSpec, dataset: Dataset) -> str | None:
    """Why; None: there is something to try."""
    if spec.config.data.windows:
        return "windows are trained in turn, and nothing is held out"
    if spec.start_from is not None:
        return "--start-from takes another run's model: leave the preset out to have its settings"
    if not dataset.splits["validation"].queries:
        return "the data have no validation part"
    return None


def differences(before: Config, after: Config) -> Settings:
    """The settings that differ, with their later values."""
    old = settings_of(before.to_json())
    return {
        name: value for name, value in settings_of(after.to_json()).items() if old[name] != value
    }


def _fitting(
    found: Sequence[Proposal], given: Settings, spec: RunSpec, dataset: Dataset
) -> list[Proposal]:
    """Those that the user's settings and the data leave, each once."""
    tried = {key: value for key, value in given.items() if key not in FREE}
    kept: dict[str, Proposal] = {}
    for each in found:
        try:
            config = overridden(each.config, tried)
            config = fitted(replace(spec, preset=NAME, config=config), dataset)[0].config
        except Mistake:  # what was asked for goes with another of them
            continue
        kept.setdefault(config.digest, replace(each, config=config))
    return list(kept.values())


def _final(config: Config, tried: Tried, given: Settings, is_watched: bool) -> Config:
    """Of the run itself: as long as was best, on all data where nothing is left to watch.

    is_watched: how long is best is yet to be found: large data, of which tries see a slice.
    """
    changes = {name: value for name, value in given.items() if name in FREE}
    if is_watched:
        epochs = max(round(tried.best_epoch * config.training.epochs / tried.epochs), 1)
    else:
        epochs = config.training.epochs if config.training.max_steps else tried.best_epoch
        changes = changes or {
            "data.train_splits": ("train", "validation"),
            "evaluation.every_epochs": 0,
        }
    on_validation = "validation" in changes.get("data.train_splits", ())
    if on_validation or changes.get("evaluation.every_epochs") == 0:
        changes |= {"evaluation.patience": None, "training.epochs": epochs}
    elif not is_watched:
        changes["training.epochs"] = tried.epochs
    return overridden(config, changes)
