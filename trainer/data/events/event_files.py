"""The events' files written: a row an event, a user's together, row groups of whole users.

    with EventWriter(path, layout) as writer:
        writer.write(events)            # users ascend from call to call
    writer.count_SK                     # events by split and kind

Shapes: E = events, S = splits, K = kinds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.split_names import SPLITS
from trainer.data.events.event_footers import FOOTER_KEY
from trainer.data.events.event_reader import feedback_of
from trainer.data.events.event_rows import EventRows
from trainer.data.feature_types import Attribute
from trainer.data.schema import Kind, Split

GROUP_EVENTS = 1 << 16
"""Events of a row group: at least so many but for the last, and at most a user's more."""
ENCODINGS = {"item": "BYTE_STREAM_SPLIT", "time": "DELTA_BINARY_PACKED"}
"""Smaller and no slower to read than dictionaries, which the other columns have."""


@dataclass(frozen=True)
class Layout:
    """Which columns a dataset's events have."""

    num_users: int
    num_items: int
    kinds: tuple[Kind, ...]
    with_time: bool
    with_split: bool
    with_carried: bool = False
    more: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Further columns and their types, as `more_columns` has them."""

    def carrying(self) -> Layout:
        """That of later windows, which carry events of those before."""
        return replace(self, with_carried=True)

    @property
    def schema(self) -> pa.Schema:
        """The file's columns: ids in 32 bits where they all fit."""
        user, item = (_id_type(rows) for rows in (self.num_users, self.num_items))
        columns = {"user": user, "item": item}
        if self.with_time:
            columns["time"] = pa.int64()
        if len(self.kinds) > 1:
            columns["kind"] = pa.int8()
        if self.with_split:
            columns["split"] = pa.int8()
        if self.with_carried:
            columns["carried"] = pa.int8()
        columns |= self.more
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


@dataclass(frozen=True)
class Events:
    """Events of users that ascend; those of a user in order. All of one length, [E]."""

    user_E: np.ndarray
    item_E: np.ndarray
    kind_E: np.ndarray
    split_E: np.ndarray
    time_E: np.ndarray | None
    carried_E: np.ndarray | None = None
    """1 for events of earlier windows, kept for histories; None: none are."""
    more: dict[str, np.ndarray] = field(default_factory=dict)
    """Further columns by name, [E, ...] of any type."""

    def take(self, chosen: np.ndarray | slice) -> Events:
        """Some of the events: places in an order in which users ascend, bool [E], or a slice."""
        return Events(
            self.user_E[chosen],
            self.item_E[chosen],
            self.kind_E[chosen],
            self.split_E[chosen],
            None if self.time_E is None else self.time_E[chosen],
            None if self.carried_E is None else self.carried_E[chosen],
            {name: values[chosen] for name, values in self.more.items()},
        )


class EventWriter:
    """Writes one file. Use it as a context: the footer is written at the end."""

    def __init__(self, path: Path, layout: Layout, group_events: int = GROUP_EVENTS) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._layout = layout
        self._group_events = group_events
        self._groups: list[list[int]] = []
        self._waiting: list[Events] = []
        self._last_user = -1
        self.users = 0
        """Users written."""
        self.count_SK = np.zeros((len(SPLITS), len(layout.kinds)), dtype=np.int64)
        """Events written, by split and kind."""
        self.first_time, self.last_time = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        """Of the window's own events, where they have times."""
        self.asked_S = np.zeros(len(SPLITS), dtype=np.int64)
        """Users with a positive event in each split."""
        self._writer = pq.ParquetWriter(
            path,
            layout.schema,
            compression="zstd",
            use_dictionary=[name for name in layout.schema.names if name not in ENCODINGS],
            column_encoding={
                name: encoding
                for name, encoding in ENCODINGS.items()
                if name in layout.schema.names
            },
            write_page_checksum=True,
            store_schema=False,
        )

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and self._waiting:
            rest = self._write_groups(joined_events(self._waiting))
            self._write(rest)
        self._writer.add_key_value_metadata({FOOTER_KEY.decode(): json.dumps(self._groups)})
        self._writer.close()

    def write(self, events: Events) -> None:
        """Add events of users that come after all before; a user's may go on from the last call."""
        if not len(events.user_E):
            return
        self._waiting.append(events)
        if sum(len(each.user_E) for each in self._waiting) >= 2 * self._group_events:
            self._waiting = [self._write_groups(joined_events(self._waiting))]

    def _write_groups(self, events: Events) -> Events:
        """Write the row groups that are full; the rest.

        Cuts depend on the events alone, not on the calls that brought them.
        """
        starts = np.flatnonzero(np.diff(events.user_E, prepend=-1))
        begin = 0
        while (place := int(np.searchsorted(starts, begin + self._group_events))) < len(starts):
            end = int(starts[place])
            self._write(events.take(slice(begin, end)))
            begin = end
        return events.take(slice(begin, None))

    def _write(self, events: Events) -> None:
        """One row group."""
        users = np.unique(events.user_E[np.flatnonzero(np.diff(events.user_E, prepend=-1))])
        assert (np.diff(events.user_E) >= 0).all(), "users must ascend"
        assert users[0] > self._last_user, "users must ascend"
        self._last_user = int(users[-1])
        values = {
            "user": events.user_E,
            "item": events.item_E,
            "time": events.time_E,
            "kind": events.kind_E,
            "split": events.split_E,
            "carried": np.zeros(len(events.user_E), dtype=np.int8)
            if events.carried_E is None
            else events.carried_E,
            **events.more,
        }
        schema = self._layout.schema
        columns = [pa.array(values[field.name]).cast(field.type) for field in schema]
        self._writer.write_table(
            pa.table(columns, schema=schema), row_group_size=len(events.user_E)
        )
        own_E = slice(None) if events.carried_E is None else events.carried_E == 0
        key_E = events.split_E.astype(np.int64) * len(self._layout.kinds) + events.kind_E
        key_E = key_E[own_E]
        if events.time_E is not None:
            self.first_time = min(self.first_time, int(events.time_E[own_E].min()))
            self.last_time = max(self.last_time, int(events.time_E[own_E].max()))
        counted = np.bincount(key_E, minlength=self.count_SK.size)
        positive_E = feedback_of(self._layout.kinds)[events.kind_E] == 1
        asked = [
            len(np.unique(events.user_E[positive_E & (events.split_E == split)]))
            for split in range(len(SPLITS))
        ]
        self.count_SK += counted.reshape(self.count_SK.shape)
        self.asked_S += asked
        self.users += len(users)
        self._groups.append([int(users[0]), int(users[-1]), len(users), *asked, *counted.tolist()])


def more_columns(has_weights: bool, context: Sequence[Attribute]) -> dict[str, pa.DataType]:
    """Columns of weights and of the context, with their types."""
    columns = {"weight": pa.float32()} if has_weights else {}
    for each in context:
        columns[f"context.{each.name}"] = pa.float32() if each.is_dense else pa.int32()
    return columns


def part_file(window: int, part: int) -> str:
    """Name of a part's events in the dataset's folder."""
    return f"events/{window:05d}/part-{part:05d}.parquet"


def splits_of(count_SK: np.ndarray, kinds: Sequence[Kind], asked_S: np.ndarray) -> dict[str, Split]:
    """The counts of dataset.json out of those of its writers."""
    feedback_K = feedback_of(kinds)
    return {
        name: Split(
            rows=int(count_K.sum()),
            positives=int(count_K[feedback_K > 0].sum()),
            disliked=int(count_K[feedback_K < 0].sum()),
            queries=0 if name == "train" else int(asked),
        )
        for name, count_K, asked in zip(SPLITS, count_SK, asked_S, strict=True)
    }


def _id_type(rows: int) -> pa.DataType:
    return pa.int32() if rows < 2**31 else pa.int64()


def events_of(rows: EventRows) -> Events:
    """What was read, as it is written."""
    return Events(
        rows.user_R[rows.row_E],
        rows.item_E,
        rows.kind_E,
        rows.split_E,
        rows.time_E,
        None if rows.carried_E is None else rows.carried_E.astype(np.int8),
        rows.more,
    )


def joined_events(parts: Sequence[Events]) -> Events:
    """All events, in the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    times = [part.time_E for part in parts if part.time_E is not None]
    carried = [
        np.zeros(len(part.user_E), dtype=np.int8) if part.carried_E is None else part.carried_E
        for part in parts
    ]
    return Events(
        np.concatenate([part.user_E for part in parts]),
        np.concatenate([part.item_E for part in parts]),
        np.concatenate([part.kind_E for part in parts]),
        np.concatenate([part.split_E for part in parts]),
        np.concatenate(times) if times else None,
        np.concatenate(carried),
        {name: np.concatenate([part.more[name] for part in parts]) for name in parts[0].more},
    )
