"""What prepare shows at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.base.screen import Sheet
from trainer.data.schema import Dataset


def print_summary(dataset: Dataset, seconds: float) -> None:
    """Print splits, rows dropped by reason, attributes and digest."""
    numbers = ("rows", "positive", "disliked", "users asked")
    splits = Sheet("split", *numbers, numbers=numbers, title=dataset.path)
    for name, split in dataset.splits.items():
        asked = f"{split.queries:,}" if name != "train" else ""
        splits.add(name, f"{split.rows:,}", f"{split.positives:,}", f"{split.disliked:,}", asked)
    splits.print()
    facts = Sheet("", "", framed=False)
    facts.add("users, items", f"{dataset.num_users:,}, {dataset.num_items:,}")
    facts.add("split", _rule(dataset.split_rule))
    for line in _columns(dataset.source):
        facts.add(*line)
    facts.add("rows in the source", f"{dataset.source['rows']:,}")
    for reason, count in dataset.dropped.items():
        facts.add(f"dropped: {reason.replace('_', ' ')}", f"{count:,}")
    for note, count in dataset.notes.items():
        if count:
            facts.add(note.replace("_", " "), f"{count:,}")
    for side, attributes in (("item", dataset.item_attributes), ("user", dataset.user_attributes)):
        if attributes:
            names = ", ".join(
                f"{each.name} ({each.kind} {each.num_values:,})" for each in attributes
            )
            facts.add(f"{side} attributes", names)
        for name, reason in dataset.source["attributes_left_out"][side].items():
            facts.add(f"{side} column left out", f"{name}: {reason}")
    facts.add("digest", dataset.digest[:16])
    facts.add("time", f"{seconds:.1f} s")
    facts.print()


def _rule(rule: dict[str, Any]) -> str:
    """The rule and its parameters, without those of another rule."""
    others = {"given", "validation"} if rule["rule"] != "given" else set()
    shown = {key: value for key, value in rule.items() if key not in others}
    return ", ".join(
        f"{key} {' '.join(value) if isinstance(value, list | tuple) else value}"
        for key, value in shown.items()
    )


def _columns(source: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Which columns were taken, and what their ratings mean; a planted dataset has none."""
    taken = {role: name for role, name in source.get("columns", {}).items() if name is not None}
    if taken:
        yield "columns", ", ".join(f"{role} {name}" for role, name in taken.items())
    thresholds = source.get("thresholds")
    if thresholds is not None:
        disliked = thresholds["dislike"]
        low = "" if disliked is None else f", disliked up to {disliked:g}"
        yield "ratings", f"liked from {thresholds['positive']:g}{low}"
