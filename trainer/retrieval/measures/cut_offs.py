"""Lengths of the lists that are measured, held to the catalog. No torch: told before the work."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset

DEFAULT = (10, 20, 50)


def cut_offs(asked: Sequence[int] | None, dataset: Dataset) -> tuple[int, ...]:
    """The cut-offs asked for, ascending; None: the usual ones, as far as there are items.

    Raises:
        Mistake: where one that was asked for is beyond the catalog.
    """
    most = dataset.num_items
    if asked is None:
        return tuple(k for k in DEFAULT if k <= most) or (most,)
    if not asked or min(asked) < 1 or max(asked) > most:
        raise Mistake(
            f"k is {', '.join(map(str, asked)) or 'empty'}; cut-offs are at least 1 and at most "
            f"{most}, the number of items"
        )
    return tuple(sorted(set(asked)))


def check_queries(dataset: Dataset, split: str, users: int | None) -> None:
    """Raises Mistake where a split has nobody to ask about, or a sample is too small."""
    if dataset.splits[split].queries == 0:
        raise Mistake(
            f"the {split} split of {dataset.path} has no user with a positive interaction; "
            "prepare the dataset with a larger held-out part"
        )
    if users is not None and users < 2:
        raise Mistake(f"users is {users}; a sample has at least 2, or leave the flag out for all")
