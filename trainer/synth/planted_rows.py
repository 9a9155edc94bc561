"""The draws of one part's users as rows and queries of a prepared dataset.

The last `held_out` interactions of a held-out user are test, those before them validation:

    a b c d e f g | h i | j k      history of d: a b c     of h and i: .. f g     of j and k: .. h i
        train       val   test

Shapes: U = users of the part, M = interactions, P = liked (or disliked) ones of them, n = selected.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from trainer.data.jagged import Jagged, take_ranges
from trainer.synth.planted import Draws

SPLITS = ("train", "validation", "test")
FIRST_SECOND = 1_700_000_000
SECONDS_OF_YEAR = 365 * 86_400
SECONDS_BETWEEN = 20_000


@dataclass(frozen=True)
class PartRows:
    """Rows of a part's users with their splits; `first_user` is the row of the first."""

    draws: Draws
    item_M: np.ndarray
    """Item row, int64."""
    split_M: np.ndarray
    """0 train, 1 validation, 2 test; int8."""
    timestamp_M: np.ndarray
    """Seconds, int64, strictly ascending for a user."""
    held_out: int
    is_held_U: np.ndarray
    first_user: int
    history_length: int

    def split_start(self, split: int) -> np.ndarray:
        """First row of each user that is not before the split, int64 [U]."""
        end_U = self.draws.start_U[1:]
        rows = (3 - split) * self.held_out if split else 0
        return end_U - rows * self.is_held_U

    def rows(self, split: int, random: np.random.Generator) -> pa.Table:
        """Interactions of a split, shuffled."""
        selected_n = random.permutation(np.flatnonzero(self.split_M == split))
        user_n = self.draws.user_M[selected_n]
        limit_n = selected_n if split == 0 else self.split_start(split)[user_n]
        return pa.table(
            {
                "user": user_n + self.first_user,
                "item": self.item_M[selected_n],
                "feedback": np.where(self.draws.liked_M[selected_n], 1, -1).astype(np.int8),
                "timestamp": self.timestamp_M[selected_n],
                "history": as_list(self._recent(user_n, limit_n, liked=True)),
                "disliked": as_list(self._recent(user_n, limit_n, liked=False)),
            }
        )

    def queries(self, split: int) -> pa.Table:
        """One row a user with a positive in the split, ascending."""
        start_U = self.split_start(split)
        stop_U = start_U + self.held_out * self.is_held_U
        liked_before = exclusive_sum(self.draws.liked_M)
        user_n = np.flatnonzero(liked_before[stop_U] > liked_before[start_U])
        start_n, stop_n = start_U[user_n], stop_U[user_n]
        return pa.table(
            {
                "user": user_n + self.first_user,
                "targets": as_list(self._within(start_n, stop_n, liked=True)),
                "disliked_targets": as_list(self._within(start_n, stop_n, liked=False)),
                "seen": as_list(self._seen(user_n, start_n)),
                "history": as_list(self._recent(user_n, start_n, liked=True)),
                "disliked": as_list(self._recent(user_n, start_n, liked=False)),
            }
        )

    def count_U(self, last_split: int) -> np.ndarray:
        """Positive interactions of each user in the splits up to one, int64."""
        counted = self.draws.liked_M & (self.split_M <= last_split)
        return np.bincount(self.draws.user_M[counted], minlength=len(self.is_held_U))

    def _recent(self, user_n: np.ndarray, limit_n: np.ndarray, *, liked: bool) -> Jagged:
        """The last items of one feedback that a user has before row `limit`."""
        start_n = self.draws.start_U[user_n]
        items_P, before = self._of_feedback(liked)
        stop = before[limit_n]
        start = np.maximum(before[start_n], stop - self.history_length)
        return take_ranges(items_P, start, stop)

    def _within(self, start_n: np.ndarray, stop_n: np.ndarray, *, liked: bool) -> Jagged:
        """Items of one feedback in rows start..stop."""
        items_P, before = self._of_feedback(liked)
        return take_ranges(items_P, before[start_n], before[stop_n])

    def _of_feedback(self, liked: bool) -> tuple[np.ndarray, np.ndarray]:
        """Items of one feedback, and how many of them lie before each row (int64 [M + 1])."""
        return self._liked if liked else self._disliked

    @cached_property
    def _liked(self) -> tuple[np.ndarray, np.ndarray]:
        return self.item_M[self.draws.liked_M], exclusive_sum(self.draws.liked_M)

    @cached_property
    def _disliked(self) -> tuple[np.ndarray, np.ndarray]:
        return self.item_M[~self.draws.liked_M], exclusive_sum(~self.draws.liked_M)

    def _seen(self, user_n: np.ndarray, stop_n: np.ndarray) -> Jagged:
        """All items before row `stop`, ascending for each user."""
        bags = take_ranges(self.item_M, self.draws.start_U[user_n], stop_n)
        bag_of_value = np.repeat(np.arange(len(user_n)), np.diff(bags.offsets))
        key = bag_of_value << 32 | bags.values
        key.sort()
        return Jagged(key & 0xFFFFFFFF, bags.offsets)


def make_part(
    draws: Draws,
    *,
    row_of_slot_I: np.ndarray,
    random: np.random.Generator,
    held_out: int,
    held_share: float,
    first_user: int,
    history_length: int,
) -> PartRows:
    """Splits and timestamps for a part. Users too short to keep a train row are not held out."""
    start_U, end_U = draws.start_U[:-1], draws.start_U[1:]
    is_held_U = random.random(len(start_U)) < held_share
    is_held_U &= end_U - start_U > 2 * held_out
    from_end_M = end_U[draws.user_M] - np.arange(len(draws.user_M)) - 1
    split_M = (from_end_M < 2 * held_out).astype(np.int8) + (from_end_M < held_out)
    split_M *= is_held_U[draws.user_M]
    gap_M = random.integers(1, 2 * SECONDS_BETWEEN, len(draws.user_M))
    elapsed = exclusive_sum(gap_M)
    base_U = FIRST_SECOND + random.integers(0, SECONDS_OF_YEAR, len(start_U)) - elapsed[start_U]
    return PartRows(
        draws=draws,
        item_M=row_of_slot_I[draws.slot_M].astype(np.int64),
        split_M=split_M,
        timestamp_M=base_U[draws.user_M] + elapsed[:-1],
        held_out=held_out,
        is_held_U=is_held_U,
        first_user=first_user,
        history_length=history_length,
    )


def exclusive_sum(values: np.ndarray) -> np.ndarray:
    """Sum of all values before each place, then of all; int64 [len + 1]."""
    total = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=total[1:])
    return total


def as_list(bags: Jagged) -> pa.ListArray:
    """list<int64> without copying the values."""
    return pa.ListArray.from_arrays(bags.offsets.astype(np.int32), bags.values)
