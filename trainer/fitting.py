"""A preset's settings fitted to the data they meet, before anything is started for them, and what
of the data they leave aside.

What the user asked for is done or refused; what a preset says by default gives way, with a note.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from trainer.base.mistake import mistakes, require
from trainer.config.optimizer_section import OptimizerConfig
from trainer.config.preset_file import is_path
from trainer.config.presets import PRESETS, find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.files.filesystems import absolute
from trainer.observe.trackers.mirror import check_trackers
from trainer.run.folder import RunFolder, RunSpec, open_run

STEPS_A_WINDOW = 24
"""A window of fewer steps is passed over again."""
MOST_PASSES = 6
"""Twice as many brought nothing."""


def fitted(spec: RunSpec, dataset: Dataset) -> tuple[RunSpec, list[str]]:
    """The spec with a config that fits the data, and what was changed for it.

    Raises:
        Mistake: where what was asked for does not fit the data.
    """
    default = _defaults(spec, dataset)
    notes = []
    for fit in (_windows, _patience, _batch, _split, _cutoffs, _metric):
        config, note = fit(spec, default, dataset)
        spec = replace(spec, config=config)
        notes += [note] if note else []
    return spec, notes


def precheck(spec: RunSpec, is_here: bool) -> None:
    """Tell the user's mistakes before workers are started, as far as this machine sees them.

    Workers check again, where it counts.

    Args:
        is_here: whether the workers will be on this machine.
    """
    if is_here or Path(spec.data).exists():
        dataset, _, _ = open_run(spec)
        fitted(spec, dataset)
    if is_here:
        check_trackers(spec.config.metrics.track, spec.out)
        check_tables(spec.config.optimizer)  # torch: seconds, after what is told without it


def _defaults(spec: RunSpec, dataset: Dataset) -> Config | None:
    """What gives way: the preset's settings, or those of the run that a new one starts from; of a
    program's (`tandem compare`) all; of a file's none."""
    if spec.preset in PRESETS:
        return find_preset(spec.preset, dataset)
    if spec.start_from is not None and spec.preset == absolute(spec.start_from):
        origin = RunFolder(spec.start_from)  # one that goes on needs it no more
        return origin.read_config().config if origin.config_file.is_file() else None
    return None if is_path(spec.preset) else spec.config


def blind_spots(dataset: Dataset, *configs: Config) -> Iterator[str]:
    """A line each for somebody new, and for items that no training row has, where no model of these
    settings knows anything of them, with the flag that changes it."""
    models = [config.model for config in configs]
    has_user = bool(dataset.user_attributes) and any(each.user_attributes for each in models)
    if not (has_user or any(each.reads_history for each in models)):
        also = " or --model.user-attributes" if dataset.user_attributes else ""
        yield (
            "users are known by their ids alone: somebody new is answered by the mean of the items "
            f"they name, else by what is popular (--model.use-history{also} is trained for them)"
        )
    has_item = any(each.item_attributes or each.item_vectors for each in models)
    if dataset.item_attributes and not has_item:
        yield (
            "items are known by their ids alone: new ones are in no list until they are trained "
            "(--model.item-attributes would rank them by their attributes)"
        )


def check_tables(optimizer: OptimizerConfig) -> None:
    """Raise Mistake where this machine cannot train tables so."""
    import torch  # the rest of this file waits for neither

    from embeddings.fused_optimizer import check_table_optimizer

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    with mistakes():
        check_table_optimizer(optimizer.tables, optimizer.table_weight_decay, device_type)


Fit = tuple[Config, str | None]


def _windows(spec: RunSpec, default: Config | None, dataset: Dataset) -> Fit:
    """A stream has no end that a schedule could fall to, nor a split to be patient with; and what
    a model begins with is not made of the windows to come."""
    config = spec.config
    if not config.data.windows:
        return config, None
    require(
        dataset.has_timestamps,
        f"--windows: {dataset.path} has no times, so nothing of it comes first; prepare it with "
        "--timestamp-column, or leave --windows out",
    )
    for section, name, value, why in (
        ("evaluation", "every_epochs", 0, "every window is evaluated on before it is trained on"),
        ("evaluation", "patience", None, "nothing is held out"),
        ("optimizer", "schedule", "constant", "further windows may come"),
        ("model", "spectral_start", 0.0, "it would be made of all windows at once"),
    ):
        now = getattr(getattr(config, section), name)
        if now == value:
            continue
        flag = f"--{section}.{name.replace('_', '-')} {value}"
        gives_way = _gives_way(spec, default, section, name)
        require(gives_way, f"{section}.{name}={now} with --windows: {why}; set {flag}")
        config = _with(config, section, **{name: value})
    if _gives_way(spec, default, "training", "epochs"):
        config = _with(config, "training", epochs=_passes(spec, dataset))
    passes = config.training.epochs
    each = "each once" if passes == 1 else f"each {passes} times"
    return config, f"window by window, {each}, all of its events, at constant learning rates"


def _gives_way(spec: RunSpec, default: Config | None, section: str, name: str) -> bool:
    """Whether a setting is as the preset has it, and not because the user said so."""
    if default is None or f"{section}.{name}" in spec.given:
        return False
    return getattr(getattr(spec.config, section), name) == getattr(getattr(default, section), name)


def _passes(spec: RunSpec, dataset: Dataset) -> int:
    """Over each window, so that small ones make steps enough (docs/quality.md, "Days"). What a run
    began with holds: its data grow."""
    folder = RunFolder(spec.out)
    if folder.config_file.is_file():
        before = folder.read_config().config
        if before.data.windows:
            return before.training.epochs
    later = dataset.windows[1:] or dataset.windows  # the first may be all that was before
    events = median(window.events for window in later)
    steps = max(events, 1) / spec.config.training.global_batch_size
    return max(1, min(MOST_PASSES, math.ceil(STEPS_A_WINDOW / steps)))


def _batch(spec: RunSpec, default: Config | None, dataset: Dataset) -> Fit:
    """A step never holds more rows than there are: the rest of it would be padding."""
    config = spec.config
    splits = [dataset.splits[name] for name in config.data.train_splits]
    rows = sum(s.rows if config.loss.uses_dislikes else s.positives for s in splits)
    asked = config.training.global_batch_size
    if asked <= rows:
        return config, None
    require(
        _gives_way(spec, default, "training", "global_batch_size") and rows > 1,
        f"training.global_batch_size={asked} is more than the {rows:,} rows trained on; set it to "
        f"{rows:,} at most",
    )
    size = 1 << int(math.log2(rows))  # what 1, 2, 4 and 8 workers divide
    config = _with(config, "training", global_batch_size=size)
    return config, f"training.global_batch_size: {size:,}, since there are {rows:,} rows"


def _patience(spec: RunSpec, default: Config | None, dataset: Dataset) -> Fit:
    """Without evaluations there is nothing to be patient with."""
    config, evaluation = spec.config, spec.config.evaluation
    if evaluation.every_epochs or evaluation.patience is None:
        return config, None
    require(
        _gives_way(spec, default, "evaluation", "patience"),
        f"evaluation.patience={evaluation.patience} needs evaluation.every_epochs of at least 1",
    )
    config = _with(config, "evaluation", patience=None)
    return config, "no early stopping, since evaluation.every_epochs is 0"


def _split(spec: RunSpec, default: Config | None, dataset: Dataset) -> Fit:
    """Evaluation while training needs users with held-out items."""
    config, evaluation = spec.config, spec.config.evaluation
    if not evaluation.every_epochs or dataset.splits["validation"].queries:
        return config, None
    require(
        all(_gives_way(spec, default, "evaluation", each.name) for each in fields(evaluation)),
        "evaluation.every_epochs: the validation split has no user with a positive interaction; "
        "prepare the data with a larger one, or set evaluation.every_epochs to 0",
    )
    config = _with(config, "evaluation", every_epochs=0, patience=None)
    return config, "no evaluation while training: the data have no validation split"


def _cutoffs(spec: RunSpec, default: Config | None, dataset: Dataset) -> Fit:
    """No list is longer than the catalog."""
    config, items = spec.config, dataset.num_items
    asked = config.evaluation.k
    if not config.evaluation.every_epochs or max(asked) <= items:
        return config, None
    require(
        _gives_way(spec, default, "evaluation", "k"),
        f"evaluation.k={_listed(asked)}: cut-offs are at most {items:,}, the number of items",
    )
    ks = tuple(k for k in asked if k <= items) or (items,)
    config = _with(config, "evaluation", k=ks)
    return config, f"evaluation.k: {_listed(ks)}, since there are {items:,} items"


def _metric(spec: RunSpec, default: Config | None, dataset: Dataset) -> Fit:
    """What is watched is among what is computed."""
    config, ks = spec.config, spec.config.evaluation.k
    metric = config.evaluation.metric
    measure, _, cutoff = metric.partition("@")
    if not config.evaluation.every_epochs or int(cutoff) in ks:
        return config, None
    near = f"{measure}@{max(ks)}"
    require(
        _gives_way(spec, default, "evaluation", "metric"),
        f"evaluation.metric={metric!r} is not computed at evaluation.k={_listed(ks)}: add {cutoff} "
        f"to evaluation.k, or take {near}",
    )
    return _with(config, "evaluation", metric=near), f"evaluation.metric: {near}"


def _with(config: Config, section: str, **changes: Any) -> Config:
    return replace(config, **{section: replace(getattr(config, section), **changes)})


def _listed(ks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ks))
