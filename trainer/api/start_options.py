"""The flags of `tandem prepare` as keyword arguments of `tandem.prepare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from trainer.api.data_frames import Source


class PrepareOptions(TypedDict, total=False):
    """Fields of PrepareArguments but SOURCE and OUT, and as these say."""

    format: str | None
    user_column: str | None
    item_column: str | None
    timestamp_column: str | None
    rating_column: str | None
    items: Source | None
    users: Source | None
    item_columns: Sequence[str]
    user_columns: Sequence[str]
    title_column: str | None
    item_attributes: Sequence[str] | None
    user_attributes: Sequence[str] | None
    category: Sequence[str]
    number: Sequence[str]
    buckets: Sequence[str]
    features: str | None
    item_vectors: Sequence[str]
    user_vectors: Sequence[str]
    event_column: str | None
    event_weights: Sequence[str]
    weight_column: str | None
    context: Sequence[str]
    positive_threshold: float | None
    dislike_threshold: float | None
    split: str | None
    test_share: float | None
    validation_share: float | None
    validation: Literal["random", "last"] | None
    in_order: bool
    duplicates: Literal["first", "last"] | None
    min_count: int | None
    min_user_count: int | None
    drop_null_ids: bool
    history_length: int | None
    seed: int | None
    append: bool
    extend: str | None
    window: str | None
    keep_windows: int | None
    forget_users: str | None
    look: bool
    memory_limit: str
    threads: int | None
    scratch: str | None
