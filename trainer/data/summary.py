"""What prepare shows at the end."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from trainer.data.schema import Dataset


def print_summary(dataset: Dataset, seconds: float, console: Console | None = None) -> None:
    """Print splits, rows dropped by reason, attributes and digest."""
    shown = console or Console(highlight=False)
    table = Table(title=f"{dataset.path}", title_justify="left")
    table.add_column("split")
    for column in ("rows", "positive", "disliked", "users asked"):
        table.add_column(column, justify="right")
    for name, split in dataset.splits.items():
        asked = f"{split.queries:,}" if name != "train" else ""
        table.add_row(name, f"{split.rows:,}", f"{split.positives:,}", f"{split.disliked:,}", asked)
    shown.print(table)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("users, items", f"{dataset.num_users:,}, {dataset.num_items:,}")
    rule = ", ".join(f"{key} {value}" for key, value in dataset.split_rule.items() if value != ())
    facts.add_row("split", rule)
    facts.add_row("rows in the source", f"{dataset.source['rows']:,}")
    for reason, count in dataset.dropped.items():
        facts.add_row(f"dropped: {reason.replace('_', ' ')}", f"{count:,}")
    for note, count in dataset.notes.items():
        if count:
            facts.add_row(note.replace("_", " "), f"{count:,}")
    for side, attributes in (("item", dataset.item_attributes), ("user", dataset.user_attributes)):
        if attributes:
            names = ", ".join(
                f"{each.name} ({each.kind} {each.num_values:,})" for each in attributes
            )
            facts.add_row(f"{side} attributes", names)
        for name, reason in dataset.source["attributes_left_out"][side].items():
            facts.add_row(f"{side} column left out", f"{name}: {reason}")
    facts.add_row("digest", dataset.digest[:16])
    facts.add_row("time", f"{seconds:.1f} s")
    shown.print(facts)
