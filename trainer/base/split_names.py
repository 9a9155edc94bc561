"""What the parts of a dataset are called, in the order of what may be learnt from before what."""

from collections.abc import Sequence
from typing import Literal

SPLITS = ("train", "validation", "test")
CountColumn = Literal["count", "count_with_validation", "count_of_all"]


def count_column(splits: Sequence[str]) -> CountColumn:
    """Which column of users.parquet and items.parquet counts the positives of these splits."""
    if "test" in splits:
        return "count_of_all"
    return "count_with_validation" if "validation" in splits else "count"
