"""What may be asked of a bundle, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.bundle.vocabularies import Value

Forms = tuple[str, ...]
"""An id as it may be meant, such as with and without blanks around it: the first that is there."""


@dataclass(frozen=True)
class Filters:
    """Which items an answer may hold. What holds of all of them, holds exactly."""

    where: str | None = None
    """One SQL expression over the items' attributes."""
    only: tuple[str, ...] | None = None
    """Raw ids; None: of any."""
    exclude: tuple[str, ...] = ()
    """Raw ids."""
    max_per: Mapping[str, int] = field(default_factory=dict)
    """By column of the attributes, how many items of each value; items without one are not
    counted."""


NO_FILTERS = Filters()


@dataclass(frozen=True)
class Ask:
    """Items for somebody: a user of the dataset, or somebody new by items, features or both."""

    user: str | None = None
    """Raw id."""
    items: tuple[Forms, ...] = ()
    """Liked, oldest first."""
    features: Mapping[str, Value] = field(default_factory=dict)
    """Of the user, by the name of the attribute, as in the source."""
    context: Mapping[str, Value] = field(default_factory=dict)
    k: int = 10
    filters: Filters = NO_FILTERS


@dataclass(frozen=True)
class AskSimilar:
    """Items like an item."""

    item: str
    """Raw id; with `by_title` a title, or a part of one."""
    k: int = 10
    filters: Filters = NO_FILTERS
    by_title: bool = False


@dataclass(frozen=True)
class Item:
    """An item as a person knows it."""

    row: int
    raw_id: int | str
    title: str | None

    @property
    def label(self) -> str:
        """The title with the raw id, or the raw id alone."""
        return f"{self.title} ({self.raw_id})" if self.title else str(self.raw_id)


@dataclass(frozen=True)
class Recommendation:
    """An item for a user, or like another, as a program takes it."""

    item: int | str
    """Raw id, as in the source."""
    title: str | None
    score: float


@dataclass(frozen=True)
class Recommendations:
    """Items by falling score, and the history they follow from."""

    items: list[Item]
    scores: list[float]
    history: list[Item]
    """Most recent first."""
    note: str | None = None
    """What the list rests on, where that is not the model's own vector of who asks."""

    def listed(self) -> list[Recommendation]:
        """Best first."""
        return [
            Recommendation(item.raw_id, item.title, score)
            for item, score in zip(self.items, self.scores, strict=True)
        ]
