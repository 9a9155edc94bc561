"""What a loader is asked for, held to what the data have."""

from collections.abc import Mapping, Sequence

from trainer.base.mistake import Mistake
from trainer.data.feature_bags import list_of, side_of
from trainer.data.schema import Dataset


def check_reading(
    dataset: Dataset,
    keys: Mapping[str, Sequence[str]],
    sizes: Mapping[str, tuple[int, int]],
    history_length: int | None,
    place: tuple[int, int],
) -> None:
    """Raise Mistake where it cannot be done.

    Args:
        keys: feature keys by the side that they are asked of.
        sizes: by name, what is asked for and the least that it may be.
        place: rank and number of ranks.
    """
    for name, (value, least) in sizes.items():
        if value < least:
            raise Mistake(f"{name} is {value}: take {least} or more")
    rank, world_size = place
    if not 0 <= rank < world_size:
        raise Mistake(f"rank {rank} is outside 0..{world_size - 1}")
    if history_length is not None and history_length < 1:
        raise Mistake(
            f"history_length is {history_length}: take 1 or more, or leave history out of the "
            "query keys"
        )
    for side, of_side in keys.items():
        for key in of_side:
            if side_of(key) != side:
                raise Mistake(f"feature key {key!r} is no {side} key")
    if not dataset.has_feedback and any(list_of(key) == "disliked" for key in keys["query"]):
        raise Mistake(
            f"{dataset.path} was prepared without ratings, so it has no disliked items: leave the "
            "key disliked out"
        )
