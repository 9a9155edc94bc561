"""The help of commands that take a preset: the settings that matter; `--help-all` has them all."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import tyro

from trainer.base.typed import fields_of
from trainer.config.preset_file import field_helps
from trainer.config.sections import Config

ALL = "--help-all"
PRINT = "--print-config"
SETTINGS = {
    "model": ("tower", "dim", "use_history", "user_attributes", "item_attributes"),
    "loss": ("name", "temperature"),
    "negatives": ("uniform",),
    "optimizer": ("table_learning_rate",),
    "training": ("epochs", "global_batch_size", "seed"),
    "checkpoint": ("every_steps",),
    "evaluation": ("every_epochs",),
}
"""What one sets first, by section."""
RARE = (
    *("max_failures", "step_timeout", "resize_every", "patience"),
    *("discovery_port", "discovery_host"),
)
"""Flags of a command that its short help leaves out."""
MORE = (
    f"These are the settings that matter first. {ALL} lists every one; {PRINT} writes them as a "
    "file, which is given in the preset's place."
)


def short_kind(kind: type, config: Config) -> type[Any]:
    """A dataclass like a command's arguments, with only what the short help shows.

    Args:
        config: whose values are shown as the defaults.
    """
    fields = []
    for field in dataclasses.fields(kind):
        if field.name == "config":
            continue
        if field.name not in RARE:
            default = field if field.default is dataclasses.MISSING else field.default
            fields.append(_field(kind, field.name, default))
    for section, names in SETTINGS.items():
        values = getattr(config, section)
        below = [_field(type(values), name, getattr(values, name)) for name in names]
        shown = dataclasses.make_dataclass(section, below, frozen=True)
        shown.__doc__ = type(values).__doc__
        fields.append((section, shown, dataclasses.field(default_factory=shown)))
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True)


def _field(kind: type, name: str, default: Any) -> Any:
    """A field for make_dataclass, whose help is the docstring that `kind` has under it."""
    words = " ".join(field_helps(kind).get(name, "").split())
    annotation: Any = Annotated[fields_of(kind)[name], tyro.conf.arg(help=words)]
    if isinstance(default, dataclasses.Field):
        return name, annotation
    return name, annotation, dataclasses.field(default=default)
