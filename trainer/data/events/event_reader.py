"""The events of a dataset, read row group by row group: whole users, their events in order.

    reader = EventReader(dataset)
    for group in range(reader.num_groups):
        rows = reader.read(group)          # rows.item_E, rows.split_E, ... of rows.user_R

The footers say what all groups hold (`event_footers.py`), before any is read.

Shapes: G = row groups, R = users of a group, E = their events, S = the three splits, K = kinds of
events.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.data.description import AGAIN, COLUMN
from trainer.data.events.event_footers import check_ascending, check_totals, read_footer
from trainer.data.events.event_rows import EventRows, joined
from trainer.data.feature_types import Attribute
from trainer.data.parquet import filesystem_of, open_parquet
from trainer.data.schema import FEEDBACK, Dataset, Kind
from trainer.files.damage import DamagedError, decoded, read_range

FILES_OPENED_AT_ONCE = 16
TRAIN, VALIDATION, TEST = range(3)


class EventReader:
    """The row groups of a dataset's events, each read alone, from any thread."""

    def __init__(self, dataset: Dataset, as_told: bool = True) -> None:
        """as_told: raise where the files hold other events than dataset.json says."""
        self.dataset = dataset
        self.paths = list(map(dataset.file, dataset.event_names))
        self._newest = len(self.paths) - len(dataset.windows[-1].files)
        window_F = np.repeat(
            np.arange(len(dataset.windows)), [len(window.files) for window in dataset.windows]
        )
        describe = partial(read_footer, columns=event_columns(dataset), kinds=len(dataset.kinds))
        with ThreadPoolExecutor(FILES_OPENED_AT_ONCE) as pool:
            described = list(pool.map(describe, self.paths))
        self._metadata = [metadata for metadata, _ in described]
        self._groups = [
            (file, group)
            for file, metadata in enumerate(self._metadata)
            for group in range(metadata.num_row_groups)
        ]
        table = np.concatenate([facts for _, facts in described])
        self.users_G2 = table[:, :2]
        """First and last user of each group, int64."""
        self.users_G = table[:, 2]
        """Users of each group, int64."""
        self.asked_GS = table[:, 3:6]
        """Users with a positive event in each split, int64."""
        self.count_GSK = table[:, 6:].reshape(len(table), len(SPLITS), len(dataset.kinds))
        """Events of each group by split and kind, int64."""
        self.files_G = np.array([file for file, _ in self._groups], dtype=np.int64)
        """The file of each group, in the order of `paths`, int64."""
        held_back = self.files_G < self._newest
        self.count_GSK[held_back, TRAIN] = self.count_GSK[held_back].sum(axis=1)
        self.count_GSK[held_back, VALIDATION:] = 0
        self.asked_GS[held_back] = 0
        self.windows_G = window_F[self.files_G]
        """The window of each group, int64."""
        self._feedback_K = feedback_of(dataset.kinds)
        self._seen_kinds = tuple(
            number for number, kind in enumerate(dataset.kinds) if kind.role == "seen"
        )
        self._small = dataset.num_items < 2**31
        self._open = threading.local()
        self._kept: dict[int, EventRows] = {}
        if as_told:
            check_totals(dataset, self.asked_GS, self.count_GSK, self._feedback_K)
        check_ascending(self.users_G2, self.windows_G, self.where)

    @property
    def num_groups(self) -> int:
        return len(self._groups)

    def count(self, splits: Sequence[str], feedback: Literal["positive", "all"]) -> np.ndarray:
        """Events of each group in some splits, of positive kinds or of all but history, [G]."""
        wanted_K = self._feedback_K > 0 if feedback == "positive" else self._feedback_K != 0
        numbers = [SPLITS.index(split) for split in splits]
        counted: np.ndarray = self.count_GSK[:, numbers][:, :, wanted_K].sum(axis=(1, 2))
        return counted

    def read(self, group: int) -> EventRows:
        """The rows of a group, ids checked. Marks of held-out events hold in the newest window.

        Raises:
            Mistake: where the group is damaged (`DamagedGroup`), or not what dataset.json says.
            OSError: where its storage fails, again and again.
        """
        dataset, where = self.dataset, self.where(group)
        names = [*event_columns(dataset), *(["carried"] if self.has_carried(group) else [])]
        table = self._read(group, names)
        for name in table.column_names:
            if table.column(name).null_count:
                raise Mistake(f"{where} column {name!r} has nulls: {AGAIN}")
        found = {name: table.column(name).to_numpy() for name in table.column_names}
        limits = {
            "user": dataset.num_users,
            "item": dataset.num_items,
            "kind": len(dataset.kinds),
            "split": len(SPLITS),
            "carried": 2,
            **{key: each.num_values for key, each in context_of(dataset).items()},
        }
        for name, values in found.items():
            if limits.get(name):
                _check_ids(f"{where} column {name!r}", values, limits[name])
        events = len(found["item"])
        kind_E = found.get("kind", np.zeros(events, dtype=np.int8))
        split_E = found.get("split")
        carried_E = found.get("carried")
        if split_E is None or self._groups[group][0] < self._newest:
            split_E = np.zeros(events, dtype=np.int8)
        step_E = np.diff(found["user"], prepend=found["user"].dtype.type(-1))
        if (step_E < 0).any():
            raise Mistake(f"{where}: users do not ascend: {AGAIN}")
        start_R = np.flatnonzero(step_E != 0)
        ends = found["user"][[0, -1]].tolist() if events else None
        if ends != self.users_G2[group].tolist():
            raise Mistake(f"{where}: its users are not those that the footer says: {AGAIN}")
        return EventRows(
            found["user"][start_R].astype(np.int64),
            np.append(start_R, events),
            found["item"].astype(np.int32 if self._small else np.int64, copy=False),
            kind_E,
            self._feedback_K.take(kind_E),
            split_E.astype(np.int8, copy=False),
            found.get("time"),
            None if carried_E is None else carried_E > 0,
            {name: found[name] for name in found if is_further(name)},
            self._seen_kinds,
        )

    def has_carried(self, group: int) -> bool:
        """Whether the group's file marks events of earlier windows."""
        return "carried" in self._metadata[self._groups[group][0]].schema.names

    def of_users(self, first: int, stop: int, asked_window: int | None = None) -> EventRows:
        """The events of users first..stop-1 of all windows, of those who have some.

        Called for one range after the other it reads no group twice.

        Args:
            asked_window: its events are the test part, what came before is train, and what came
                later is left out.
        """
        overlaps_G = (self.users_G2[:, 0] < stop) & (self.users_G2[:, 1] >= first)
        if asked_window is not None:
            overlaps_G &= self.windows_G <= asked_window
        groups = np.flatnonzero(overlaps_G).tolist()
        self._kept = {group: self._kept.get(group) or self.read(group) for group in groups}
        parts = []
        for group, rows in self._kept.items():
            part = rows.of((rows.user_R >= first) & (rows.user_R < stop))
            if asked_window is not None:
                split = TEST if self.windows_G[group] == asked_window else TRAIN
                part = replace(part, split_E=np.full_like(part.split_E, split))
            parts.append(part)
        return joined(parts)

    def range_of(self, group: int) -> tuple[int, int]:
        """First user of a group, and the one after its last."""
        first, last = self.users_G2[group].tolist()
        return first, last + 1

    def user_ranges(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Ranges of users that between them hold first..stop-1: the groups of the largest window.

        Those of the other windows lie within, or are read again.
        """
        largest = int(np.bincount(self.windows_G).argmax()) if self.num_groups else 0
        starts = self.users_G2[self.windows_G == largest, 0]
        inner = starts[(starts > first) & (starts < stop)].tolist()
        yield from pairwise([first, *inner, stop])

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        file, number = self._groups[group]

        def read() -> pa.Table:
            reader = self._reader(file)
            try:
                return reader.read_row_group(number, columns=columns, use_threads=False)
            except (OSError, pa.ArrowException):
                self._open.__dict__.pop(str(file), None)  # a reader that has met an error
                raise

        try:
            return decoded(read, partial(self._read_bytes, group))
        except DamagedError as error:
            raise DamagedGroup(f"{self.where(group)} cannot be read ({error})") from error

    def _read_bytes(self, group: int) -> None:
        """All bytes of a group, not decoded."""
        file, number = self._groups[group]
        described = self._metadata[file].row_group(number)
        chunks = [described.column(index) for index in range(described.num_columns)]
        begins = [c.dictionary_page_offset or c.data_page_offset for c in chunks]
        ends = [b + c.total_compressed_size for b, c in zip(begins, chunks, strict=True)]
        read_range(*filesystem_of(self.paths[file]), min(begins), max(ends))

    def _reader(self, file: int) -> pq.ParquetFile:
        """This thread's reader of a file: pyarrow's are not to be shared."""
        readers = self._open.__dict__
        if str(file) not in readers:
            readers[str(file)] = open_parquet(self.paths[file], self._metadata[file])
        reader: pq.ParquetFile = readers[str(file)]
        return reader

    def where(self, group: int) -> str:
        """A group's name in messages."""
        file, number = self._groups[group]
        return f"{self.paths[file]} row group {number}"


class DamagedGroup(Mistake):
    """A row group whose bytes are there and cannot be decoded."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: restore the file, or prepare the dataset again")
        self.what = what


def feedback_of(kinds: Sequence[Kind]) -> np.ndarray:
    """1, -1 or 0 for each kind, int8."""
    return np.array([FEEDBACK[kind.role] for kind in kinds], dtype=np.int8)


def event_columns(dataset: Dataset) -> dict[str, str]:
    """The columns of the events' files that are read, by what dataset.json says."""
    names = ["user", "item", *(["time"] if dataset.has_timestamps else [])]
    names += ["kind"] if len(dataset.kinds) > 1 else []
    held_out = sum(dataset.splits[name].rows for name in SPLITS[VALIDATION:])
    names += ["split"] if held_out else []
    columns = dict.fromkeys(names, "integer")
    columns |= {"weight": "number"} if dataset.has_weights else {}
    return columns | {key: COLUMN[each.kind] for key, each in context_of(dataset).items()}


def is_further(column: str) -> bool:
    """Whether a column is one of those that `EventRows.more` holds."""
    return column == "weight" or column.startswith("context.")


def context_of(dataset: Dataset) -> dict[str, Attribute]:
    """Attributes of events by the names of their columns."""
    return {f"context.{each.name}": each for each in dataset.context_attributes}


def each_group(dataset: Dataset, splits: Sequence[str]) -> Iterator[tuple[EventRows, np.ndarray]]:
    """The row groups with events of some splits, and which of their events these are, bool [E]."""
    reader = EventReader(dataset)
    numbers = [SPLITS.index(split) for split in splits]
    for group in np.flatnonzero(reader.count_GSK[:, numbers].sum(axis=(1, 2))):
        rows = reader.read(int(group))
        yield rows, np.isin(rows.split_E, numbers) & rows.own_E


def each_event(
    dataset: Dataset, splits: Sequence[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(user, item, feedback) of all events of some splits, a row group at a time."""
    for rows, chosen_E in each_group(dataset, splits):
        user_E = rows.user_R[rows.row_E[chosen_E]]
        yield user_E, rows.item_E[chosen_E].astype(np.int64), rows.feedback_E[chosen_E]


def _check_ids(where: str, values: np.ndarray, limit: int) -> None:
    """FBGEMM maps an id out of range to row 0 at most with a warning: stop it here."""
    # One pass: as unsigned numbers, negative ids are the largest.
    if int(values.view(f"u{values.itemsize}").max(initial=0)) >= limit:
        low, high = int(values.min()), int(values.max())
        raise Mistake(
            f"{where} holds id {low if low < 0 else high}, outside 0..{limit - 1}: "
            "the files do not belong to this dataset.json. Prepare the dataset again."
        )
