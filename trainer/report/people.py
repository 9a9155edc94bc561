"""What a run recommends, to a few users, with what they liked last beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.base.mistake import Mistake
from trainer.bundle import answers
from trainer.bundle.asked import Ask
from trainer.bundle.opened_bundle import Bundle
from trainer.retrieval.run_bundle import opened_bundle

LISTED = 5


@dataclass(frozen=True)
class Person:
    """A user, by raw id."""

    user: str
    interactions: int
    """In training."""
    liked: list[str]
    """Most recent first."""
    recommended: list[str]


def people(run: str, count: int) -> list[Person] | str:
    """Some users of a run's data, from the least active to the most; why not, in a sentence."""
    try:
        with opened_bundle(run) as bundle:
            return [_person(bundle, row) for row in spread_users(bundle.user_count_U, count)]
    except Mistake as mistake:
        return f"Nothing can be recommended here: {mistake}."


def spread_users(count_U: np.ndarray, wanted: int) -> list[int]:
    """Rows of users at even steps of the order by interactions, of those who have any."""
    known = np.flatnonzero(count_U > 0)
    order = known[np.argsort(count_U[known], kind="stable")]
    places = np.linspace(0, len(order) - 1, min(wanted, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def _person(bundle: Bundle, row: int) -> Person:
    user = str(bundle.user_names.id_of(row))
    found = answers.recommend(bundle, Ask(user=user, k=LISTED))
    return Person(
        user,
        int(bundle.user_count_U[row]),
        [item.label for item in found.history[:LISTED]],
        [item.label for item in found.items],
    )
