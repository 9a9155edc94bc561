"""Values of flags held to what they can be, when they are read."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.base.mistake import Mistake

MOST = 2**63 - 1
MOST_ROWS = 2**31 - 1
"""Rows, items or users that a benchmark makes up."""
MOST_TURNS = 1000
"""Repetitions of a measurement."""
MOST_THREADS = 1024
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100
"""Of a second model's scores beside the first's."""


def check_range(flag: str, value: float, least: float, most: float = MOST, what: str = "") -> None:
    """Raise Mistake for a number out of its range; `what` says more of the limit."""
    if least <= value <= most:
        return
    endless = most == MOST and value < least
    limit = f"at least {least:,}" if endless else f"from {least:,} to {most:,}"
    raise Mistake(f"{flag} {value}: must be {limit}{f', {what}' if what else ''}")


def check_ranges(arguments: object, **limits: tuple[float, float]) -> None:
    """`check_range` of several flags by their fields' names; None is a flag left out."""
    for name, (least, most) in limits.items():
        value = vars(arguments)[name]
        if value is not None:
            check_range(f"--{name.replace('_', '-')}", value, least, most)


def check_given(arguments: object, flags: Iterable[str], positional: Iterable[str] = ()) -> None:
    """Raise Mistake for an empty word: a variable of the shell that was not set, not a choice."""
    for name in positional:
        if vars(arguments)[name] == "":
            raise Mistake(f"{name.upper()} is empty")
    for name in flags:
        if vars(arguments)[name] == "":
            raise Mistake(f"--{name.replace('_', '-')} is empty")
