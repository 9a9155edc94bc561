"""What a run was told to do: where its settings differ, from its preset or from other runs'."""

from __future__ import annotations

from typing import Any

from trainer.config.presets import PRESETS, find_preset
from trainer.config.sections import settings_of


def words(value: Any) -> str:
    """As a person writes it: `yes`, `10 20 50`, `none`."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return " ".join(map(words, value)) or "none"
        case _:
            return str(value)


def from_preset(run: dict[str, Any]) -> list[tuple[str, str, str]] | None:
    """(setting, value, the preset's) of those that differ; None: the preset is not known here."""
    if run["preset"] not in PRESETS:
        return None
    base = settings_of(find_preset(run["preset"]).to_json())
    return [
        (name, words(value), words(base.get(name)))
        for name, value in settings_of(run["config"]).items()
        if words(value) != words(base.get(name))
    ]


def between(runs: list[dict[str, Any]]) -> list[str]:
    """Names of settings that are not the same in all runs."""
    each = [settings_of(run["config"]) for run in runs]
    names = dict.fromkeys(name for settings in each for name in settings)
    return [name for name in names if len({words(one.get(name)) for one in each}) > 1]
