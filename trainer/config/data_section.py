"""The config's `data` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trainer.base.mistake import require
from trainer.base.split_names import SPLITS
from trainer.base.typed import Range, check


@dataclass(frozen=True)
class DataConfig:
    """What the loader reads and how it shuffles."""

    train_splits: tuple[str, ...] = ("train",)
    """Splits trained on: train; train validation; or all, of a final model whose settings are
    chosen, which nothing is left to evaluate on."""
    windows: bool = False
    """Train window by window of the data, all of its events whatever their split; on
    the next one the model is evaluated before it trains on it. See `train --windows`."""
    shuffle_window_rows: Annotated[int, Range(least=1, most=2**31)] = 262_144
    """Rows shuffled together in memory; row groups are permuted as a whole before that."""
    streams: Annotated[int, Range(least=0, most=65_536)] = 0
    """Parts of the epoch read side by side; 0: the least common multiple of 8 and the workers,
    so that 1, 2, 4 and 8 workers see the same global batches."""
    history_length: Annotated[int, Range(least=1, most=100_000)] | None = None
    """Most history items fed to the query tower; None: as many as prepare was told. To leave the
    history out, set model.use_history to False."""
    skip_corrupt: bool = False
    """Count and skip row groups that cannot be read, instead of stopping."""

    def __post_init__(self) -> None:
        check(self, "data")
        if self.train_splits == ("all",) or self.windows:
            object.__setattr__(self, "train_splits", SPLITS)
        unknown = set(self.train_splits) - {"train", "validation"}
        require(
            self.train_splits == SPLITS or ("train" in self.train_splits and not unknown),
            f"data.train_splits={self.train_splits}: 'train', optionally with 'validation', or "
            "'all'; but for that the test split is never trained on",
        )
