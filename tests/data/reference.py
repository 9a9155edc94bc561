"""What prepare must make of interactions, written out in plain Python: slow, and by definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.data.planted import Row

POSITIVE, DISLIKED = 1, -1


@dataclass(frozen=True)
class Kept:
    """A row that survives, with the split that it was dealt to."""

    place: int
    """Place among the user's events."""
    user: Any
    item: Any
    feedback: int
    timestamp: int | None
    split: int


def feedback_of(row: Row) -> int:
    if row.rating is None or row.rating >= 4:
        return POSITIVE
    return DISLIKED if row.rating <= 2 else 0


def surviving(rows: list[Row], keep: str) -> tuple[dict[tuple[Any, Any], int], int, int]:
    """Places in the source of rows kept, by user and item; how many duplicates and neutral ones."""
    chosen: dict[tuple[Any, Any], int] = {}
    for position in sorted(range(len(rows)), key=lambda p: (rows[p].timestamp or 0, p)):
        pair = rows[position].user, rows[position].item
        if keep == "last" or pair not in chosen:
            chosen[pair] = position
    rated = {pair: p for pair, p in chosen.items() if feedback_of(rows[p]) != 0}
    return rated, len(rows) - len(chosen), len(chosen) - len(rated)


def pool_of(row: Kept, kept: list[Kept], feedback: int, splits: tuple[int, ...]) -> list[Any]:
    """Items of the row's user that it may see when the splits are trained on, oldest first."""
    pool = [
        each
        for each in kept
        if each.user == row.user
        and each.feedback == feedback
        and each.split in splits
        and each.item != row.item
        and (row.timestamp is None or each.timestamp < row.timestamp)
    ]
    return [each.item for each in sorted(pool, key=lambda each: each.place)]


def query_of(
    user: Any, split: int, kept: list[Kept], length: int, follows_time: bool
) -> dict[str, Any] | None:
    """One user's row of queries; None where it has no positive target."""
    own = sorted(
        (each for each in kept if each.user == user),
        key=lambda each: each.place,
    )
    held_out = [each for each in own if each.split == split]
    if not any(each.feedback == POSITIVE for each in held_out):
        return None
    seen = [each for each in own if each.split < split]
    known = seen
    if follows_time:
        known = [each for each in seen if each.timestamp < held_out[0].timestamp]

    def last(feedback: int) -> list[Any]:
        items = [each.item for each in known if each.feedback == feedback]
        return items[-length:] if length else []

    return {
        "targets": [each.item for each in held_out if each.feedback == POSITIVE],
        "disliked_targets": [each.item for each in held_out if each.feedback == DISLIKED],
        "seen": {each.item for each in seen},
        "history": last(POSITIVE),
        "disliked": last(DISLIKED),
    }
