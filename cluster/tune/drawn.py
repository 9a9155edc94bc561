"""What the trials of a search are: settings drawn at random, losses in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from losses.choices import LossName
from trainer.config.sections import Config

TEMPERATURE_RANGE = (0.03, 0.3)
SPREAD = 5.0
"""Learning rates are searched between the preset's divided and multiplied by this."""


def draw_settings(
    config: Config, losses: Sequence[LossName], trials: int, seed: int
) -> list[dict[str, Any]]:
    """What each trial is; names are `section.field`.

    The losses take turns, so that each has its share of a short search; the rest is drawn evenly
    on a logarithmic scale.
    """
    random = np.random.default_rng(seed)
    names = list(losses) or [config.loss.name]
    ranges = {
        "loss.temperature": TEMPERATURE_RANGE,
        "optimizer.table_learning_rate": _around(config.optimizer.table_learning_rate),
        "optimizer.tower_learning_rate": _around(config.optimizer.tower_learning_rate),
    }
    return [
        {
            "loss.name": names[number % len(names)],
            **{
                field: float(np.exp(random.uniform(*np.log(ends))))
                for field, ends in ranges.items()
            },
        }
        for number in range(trials)
    ]


def _around(rate: float) -> tuple[float, float]:
    return rate / SPREAD, rate * SPREAD


def apply_settings(config: Config, settings: dict[str, Any]) -> Config:
    """`config` with drawn settings. A loss other than the preset's has its own defaults else.

    Nobody is told of a trial's metrics but its own folder.
    """
    name = settings["loss.name"]
    loss = config.loss.of(name)
    if loss.kind.usual_temperature is not None:
        loss = replace(loss, temperature=settings["loss.temperature"])
    optimizer = replace(
        config.optimizer,
        table_learning_rate=settings["optimizer.table_learning_rate"],
        tower_learning_rate=settings["optimizer.tower_learning_rate"],
    )
    every = max(config.evaluation.every_epochs, 1)
    return replace(
        config,
        loss=loss,
        optimizer=optimizer,
        evaluation=replace(config.evaluation, every_epochs=every),
        metrics=replace(config.metrics, enabled=False, track=()),
    )
