"""The draws of one part's users as events of a prepared dataset.

The last `held_out` interactions of a held-out user are test, those before them validation:

    a b c d e f g | h i | j k
        train       val   test

Shapes: U = users of the part, M = interactions.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from trainer.data.events.event_files import Events
from trainer.data.jagged import Jagged, offsets_of
from trainer.synth.planted import TASTE_WEIGHTS, Draws
from trainer.synth.planted_extras import boosts

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
    kind_M: np.ndarray | None = None
    """Number of each one's kind, int8; None: liked or disliked."""
    window_M: np.ndarray | None = None
    """Window of each one, int64; None: there is one window."""
    signals: tuple[int, ...] = ()
    """Kinds whose items are not left out of later rankings."""
    more: dict[str, np.ndarray] = field(default_factory=dict)
    """Weights and the context, as `Events` has them."""
    context: tuple[np.ndarray, np.ndarray] | None = None
    """Device and standardised minutes of each one, as `boosts` takes them."""

    @property
    def left_out_slot_M(self) -> np.ndarray:
        """Slots that later rankings leave out; of mere signals, which leave nothing out, -1."""
        if self.kind_M is None or not self.signals:
            return self.draws.slot_M
        return np.where(np.isin(self.kind_M, self.signals), -1, self.draws.slot_M)

    def split_start(self, split: int) -> np.ndarray:
        """First row of each user that is not before the split, int64 [U]."""
        end_U = self.draws.start_U[1:]
        rows = (3 - split) * self.held_out if split else 0
        return end_U - rows * self.is_held_U

    def events(self) -> Events:
        """All of them as they are written."""
        return Events(
            self.draws.user_M + self.first_user,
            self.item_M,
            np.where(self.draws.liked_M, 0, 1).astype(np.int8)
            if self.kind_M is None
            else self.kind_M,
            self.split_M,
            self.timestamp_M,
            more=self.more,
        )

    def taste_weights(self, row_n: np.ndarray, taste_nT: np.ndarray) -> np.ndarray:
        """How much users like their tastes in the context of rows, [n, T], up to a factor."""
        if self.context is None:
            return np.broadcast_to(TASTE_WEIGHTS, taste_nT.shape)
        device_M, z_M = self.context
        return TASTE_WEIGHTS * boosts(device_M[row_n], z_M[row_n], taste_nT)

    def count_U(self, last_split: int) -> np.ndarray:
        """Positive interactions of each user in the splits up to one, int64."""
        counted = self.draws.liked_M & (self.split_M <= last_split)
        return np.bincount(self.draws.user_M[counted], minlength=len(self.is_held_U))


def make_part(
    draws: Draws,
    *,
    row_of_slot_I: np.ndarray,
    random: np.random.Generator,
    held_out: int,
    held_share: float,
    first_user: int,
) -> PartRows:
    """Splits and timestamps for a part. Users too short to keep a train row are not held out."""
    start_U, end_U = draws.start_U[:-1], draws.start_U[1:]
    is_held_U = random.random(len(start_U)) < held_share
    is_held_U &= end_U - start_U > 2 * held_out
    from_end_M = end_U[draws.user_M] - np.arange(len(draws.user_M)) - 1
    split_M = (from_end_M < 2 * held_out).astype(np.int8) + (from_end_M < held_out)
    split_M *= is_held_U[draws.user_M]
    gap_M = random.integers(1, 2 * SECONDS_BETWEEN, len(draws.user_M))
    elapsed = offsets_of(gap_M)
    base_U = FIRST_SECOND + random.integers(0, SECONDS_OF_YEAR, len(start_U)) - elapsed[start_U]
    return PartRows(
        draws=draws,
        item_M=row_of_slot_I[draws.slot_M].astype(np.int64),
        split_M=split_M,
        timestamp_M=base_U[draws.user_M] + elapsed[:-1],
        held_out=held_out,
        is_held_U=is_held_U,
        first_user=first_user,
    )


def as_list(bags: Jagged) -> pa.ListArray:
    """list<int64> without copying the values."""
    return pa.ListArray.from_arrays(bags.offsets.astype(np.int32), bags.values)
