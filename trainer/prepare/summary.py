"""What prepare shows at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.base.screen import Sheet
from trainer.data.feature_types import Attribute
from trainer.data.schema import SIDES, Dataset, Kind


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
    for side, rows in dataset.table_rows.items():
        rare = (dataset.num_items if side == "item" else dataset.num_users) - rows.own
        facts.add(
            f"{side}s of fewer than {rows.min_count:,} rows",
            f"{rare:,} share {rows.shared:,} rows of tables; {rows.own:,} have their own",
        )
    facts.add("split", _rule(dataset.split_rule))
    for line in _columns(dataset.source):
        facts.add(*line)
    if dataset.is_weighted or len(dataset.kinds) > 1:
        facts.add("kinds of events", ", ".join(map(_kind, dataset.kinds)))
    facts.add("rows in the source", f"{dataset.source['rows']:,}")
    for reason, count in dataset.dropped.items():
        facts.add(f"dropped: {reason.replace('_', ' ')}", f"{count:,}")
    for note, count in dataset.notes.items():
        if count:
            facts.add(note.replace("_", " "), f"{count:,}")
    for side in SIDES:
        attributes: tuple[Attribute, ...] = getattr(dataset, f"{side}_attributes")
        if attributes:
            facts.add(f"{side} attributes", ", ".join(map(_described, attributes)))
        for name, reason in dataset.source["attributes_left_out"].get(side, {}).items():
            facts.add(f"{side} column left out", f"{name}: {reason}")
    facts.add("digest", dataset.digest[:16])
    facts.add("time", f"{seconds:.1f} s")
    facts.print()


def _kind(kind: Kind) -> str:
    """A kind and what becomes of it."""
    role = {"positive": "asked for in tests", "signal": "trained on"}.get(kind.role, kind.role)
    return f"{kind.name} ({role}{'' if kind.weight == 1 else f', weight {kind.weight:g}'})"


def _described(attribute: Attribute) -> str:
    """An attribute and what it is read as."""
    if attribute.kind == "vector":
        files = {file.file.rsplit(".", 1)[-1] for file in attribute.vectors}
        return f"{attribute.name} (vector of {attribute.width:,}, {'/'.join(sorted(files))})"
    if attribute.scale is not None:
        low, high = attribute.scale.quantiles[0], attribute.scale.quantiles[-1]
        scale = ", log" if attribute.scale.log1p else ""
        return f"{attribute.name} ({attribute.of} {low:g} to {high:g}{scale})"
    what = "buckets" if attribute.boundaries else "values"
    values = f"{attribute.num_values - 1:,} {what}"  # a row is that of none, or an unknown one
    return f"{attribute.name} ({values}{', several each' if attribute.kind == 'multi' else ''})"


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
    if source.get("unused"):
        yield (
            "columns not read",
            f"{', '.join(source['unused'])} (--look says what they could be)",
        )
    thresholds = source.get("thresholds")
    if thresholds is not None:
        disliked = thresholds["dislike"]
        low = "" if disliked is None else f", disliked up to {disliked:g}"
        yield "ratings", f"liked from {thresholds['positive']:g}{low}"
