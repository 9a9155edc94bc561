"""What prepare shows at the end."""

from __future__ import annotations

from trainer.data.schema import Dataset
from trainer.screen import Sheet


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
    rule = ", ".join(f"{key} {value}" for key, value in dataset.split_rule.items() if value != ())
    facts.add("split", rule)
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
