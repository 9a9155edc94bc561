"""Filters of answers as Python has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from trainer.api.data_frames import quoted
from trainer.retrieval.arguments import FilterArguments


class FilterOptions(TypedDict, total=False):
    """Which items an answer may hold."""

    where: str | None
    """A condition on the items' attributes, in SQL: "genre = 'Jazz' AND price < 20"."""
    exclude: Sequence[str | int] | None
    """Raw ids of items that are left out."""
    only: Sequence[str | int] | None
    """Raw ids of the items to choose from."""
    max_per: Mapping[str, int] | None
    """By attribute, at most so many items of each of its values: {"brand": 2}."""


def filters_from(given: FilterOptions) -> FilterArguments:
    """The same as flags. Raises Mistake."""
    exclude, only = given.get("exclude"), given.get("only")
    return FilterArguments(
        where=given.get("where"),
        exclude=quoted(exclude) if exclude else None,
        only=None if only is None else quoted(only),
        max_per=tuple(f"{column}={n}" for column, n in (given.get("max_per") or {}).items()),
    )
