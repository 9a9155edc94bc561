"""The one item that words of a title mean."""

from __future__ import annotations

from trainer.base.mistake import Mistake
from trainer.bundle.opened_bundle import Bundle

TITLES_TOLD = 5
"""Of those that fit."""


def rows_by_title(bundle: Bundle, words: str) -> list[int]:
    """Rows whose title it is, else of which it is a part, those with most interactions first.
    Raises Mistake for what is no text."""
    if not words.strip() or not words.isprintable():
        raise Mistake(f"title {words!r:.60}: empty, or no text that can be printed")
    return sorted(bundle.item_names.titled(words), key=lambda row: -bundle.count_I[row])


def titled(bundle: Bundle, words: str) -> int:
    """Its row. Raises Mistake where none has such a title, or several."""
    names = bundle.item_names
    rows = rows_by_title(bundle, words)
    if len(rows) == 1:
        return int(rows[0])
    if not rows:
        raise Mistake(f"title {words!r:.60}: no item has such a title; give an item's id")
    most = rows[:TITLES_TOLD]
    told = "; ".join(f"{names.title_of(row)} ({names.id_of(row)})" for row in most)
    more = "" if len(most) == len(rows) else f"; and {len(rows) - len(most):,} more"
    raise Mistake(f"title {words!r:.60}: {len(rows):,} fit: {told}{more}. Give the id of one")
