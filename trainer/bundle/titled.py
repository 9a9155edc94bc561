"""The one item that words of a title mean."""

from __future__ import annotations

from trainer.base.mistake import Mistake
from trainer.bundle.opened_bundle import Bundle

TITLES_TOLD = 5
"""Of those that fit."""


def titled(bundle: Bundle, words: str) -> int:
    """Its row. Raises Mistake where none has such a title, or several."""
    names = bundle.item_names
    rows = names.titled(words)
    if len(rows) == 1:
        return int(rows[0])
    if not rows:
        raise Mistake(f"title {words!r:.60}: no item has such a title; give an item's id")
    most = sorted(rows, key=lambda row: -bundle.count_I[row])[:TITLES_TOLD]
    told = "; ".join(f"{names.title_of(row)} ({names.id_of(row)})" for row in most)
    more = "" if len(most) == len(rows) else f"; and {len(rows) - len(most):,} more"
    raise Mistake(f"title {words!r:.60}: {len(rows):,} fit: {told}{more}. Give the id of one")
