"""`--forget-users FILE` and `--keep-windows N`: events leave a dataset, and nothing else changes.

Rows of users and items stay where they are, so that trained tables fit; a forgotten user's row has
no id any more. Files without an event that leaves are kept as they are.

Shapes: E = events, R = users of a row group.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.data.description import TABLES
from trainer.data.events.event_files import EventWriter, Layout, events_of, more_columns, splits_of
from trainer.data.events.event_reader import EventReader
from trainer.data.events.event_rows import EventRows
from trainer.data.feature_types import Attribute
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset, EventWindow, combined_digest, record_of
from trainer.data.vectors import type_of
from trainer.files.filesystems import is_uri, local_path
from trainer.files.whole_folder import whole_folder
from trainer.prepare.entity_tables import COUNTS
from trainer.prepare.extend import check_alone, keep_files, replaced_files
from trainer.prepare.features.forgotten_values import forget_values

ROWS_AT_ONCE = 1 << 20


def check_in_place(path: str) -> None:
    """Raise Mistake where a dataset cannot be written anew where it is."""
    if is_uri(path):
        raise Mistake(
            f"--forget-users and --keep-windows write {path} anew in place, which only a local "
            "folder allows"
        )


def forgotten_rows(dataset: Dataset, file: str) -> tuple[np.ndarray, int]:
    """Rows of the users that a file names, one id a line; how many of its ids are no user's."""
    try:
        text = Path(file).read_text()
    except (OSError, UnicodeError) as error:
        raise Mistake(f"--forget-users {file} cannot be read: {error}") from error
    wanted = {line.strip() for line in text.splitlines() if line.strip()}
    if not wanted:
        raise Mistake(f"--forget-users {file} names nobody: give one user id a line")
    rows, start = [], 0
    with open_parquet(dataset.file("users.parquet")) as users:
        for batch in users.iter_batches(ROWS_AT_ONCE, columns=["raw_id"]):
            ids = batch.column(0).cast(pa.string())
            chosen = pc.is_in(ids, pa.array(sorted(wanted))).to_numpy(False)
            rows.append(start + np.flatnonzero(chosen))
            start += len(batch)
    found = np.concatenate(rows)
    return found, len(wanted) - len(found)


def trim(path: str, forget: np.ndarray | None, keep_windows: int | None) -> Dataset:
    """Take events out of a dataset in place, as a whole or not at all; the dataset as it is then.

    Args:
        forget: rows of users whose events and ids leave.
        keep_windows: the newest windows that stay; None: all.
    """
    dataset = Dataset.load(path)
    check_alone(dataset)
    users = np.unique(np.empty(0, dtype=np.int64) if forget is None else forget)
    kept = dataset.windows if keep_windows is None else dataset.windows[-keep_windows:]
    if len(kept) == len(dataset.windows) and not len(users):
        return dataset
    with whole_folder(path, partial(replaced_files, dataset)) as folder:
        trimmed = _write(dataset, kept, users, folder)
        (folder / "dataset.json").write_text(trimmed.to_json())
    return replace(trimmed, path=path)


def _write(
    dataset: Dataset, kept: Sequence[EventWindow], users: np.ndarray, folder: Path
) -> Dataset:
    reader = EventReader(dataset)
    gone = _Gone(dataset)
    kept_names = {name for window in kept for name in window.files}
    rewritten = {"items.parquet", "users.parquet"}
    for number, name in enumerate(dataset.event_names):
        groups = np.flatnonzero(reader.files_G == number).tolist()
        if name not in kept_names:
            for group in groups:
                rows = reader.read(group)
                gone.add(rows, rows.own_E)
                gone.windows += int(np.count_nonzero(rows.own_E))
        elif any(_holds(reader.users_G2[group], users) for group in groups):
            _without(reader, groups, users, folder / name, gone)
            rewritten.add(name)
        else:
            keep_files(dataset, [name], folder)
    if len(users) and forget_values(dataset, users, folder):
        rewritten.add("attributes.parquet")
    else:
        keep_files(dataset, ["attributes.parquet"], folder)
    rewritten |= _without_vectors(dataset, users, folder)
    for side, chosen in (("item", np.empty(0, dtype=np.int64)), ("user", users)):
        _recounted(dataset, side, gone.counts[side], chosen, folder)
    return _described(dataset, kept, rewritten, gone, folder)


class _Gone:
    """What leaves: positives of users and items in each of `COUNTS`, rows by reason."""

    def __init__(self, dataset: Dataset) -> None:
        self.counts = {
            side: np.zeros((3, size), dtype=np.int64)
            for side, size in (("user", dataset.num_users), ("item", dataset.num_items))
        }
        self.users = self.windows = 0

    def add(self, rows: EventRows, chosen_E: np.ndarray) -> None:
        liked_E = chosen_E & (rows.feedback_E > 0)
        for last in range(3):
            counted_E = liked_E & (rows.split_E <= last)
            np.add.at(self.counts["item"][last], rows.item_E[counted_E], 1)
            np.add.at(self.counts["user"][last], rows.user_R[rows.row_E[counted_E]], 1)


def _holds(first_last: np.ndarray, users: np.ndarray) -> bool:
    low, high = np.searchsorted(users, (first_last[0], first_last[1] + 1))
    return bool(high > low)


def _without(
    reader: EventReader,
    groups: list[int],
    users: np.ndarray,
    target: Path,
    gone: _Gone,
) -> None:
    """Write a file anew without some users."""
    dataset = reader.dataset
    layout = Layout(
        dataset.num_users,
        dataset.num_items,
        dataset.kinds,
        dataset.has_timestamps,
        with_split=True,
        with_carried=reader.has_carried(groups[0]),
        more=more_columns(dataset.has_weights, dataset.context_attributes),
    )
    with EventWriter(target, layout) as writer:
        for group in groups:
            rows = reader.read(group)
            left_R = np.isin(rows.user_R, users)
            away = rows.of(left_R)
            gone.add(away, away.own_E)
            gone.users += int(np.count_nonzero(away.own_E))
            stays = rows.of(~left_R)
            if len(stays.user_R):
                writer.write(events_of(stays))


def _without_vectors(dataset: Dataset, users: np.ndarray, folder: Path) -> set[str]:
    """Files of vectors kept, or written anew with zeros for some users; names of the latter."""
    anew = set()
    for key, attribute in dataset.attributes.items():
        start = 0
        for file in attribute.vectors:
            keep_files(dataset, [file.file], folder)
            here = users[(users >= start) & (users < start + file.rows)] - start
            if key.startswith("user.") and len(here):
                target = folder / file.file
                target.unlink()  # the same file as the dataset's
                shutil.copyfile(local_path(dataset.path) / file.file, target)
                vectors = np.memmap(target, dtype=type_of(file.file), mode="r+")
                vectors.reshape(file.rows, attribute.width)[here] = 0
                vectors.flush()
                anew.add(file.file)
            start += file.rows
    return anew


def _recounted(
    dataset: Dataset, side: str, less: np.ndarray, forgotten: np.ndarray, folder: Path
) -> None:
    """Write users.parquet or items.parquet with smaller counts; forgotten rows are blank."""
    name, attributes = f"{side}s.parquet", dataset.item_attributes
    if side == "user":
        attributes = dataset.user_attributes
    writer: pq.ParquetWriter | None = None
    start = 0
    with open_parquet(dataset.file(name)) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            table = pa.Table.from_batches([batch])
            rows = slice(start, start + len(table))
            for column, away in zip(COUNTS, less[:, rows], strict=True):
                left = table.column(column).to_numpy() - away
                table = _with(table, column, pa.array(left))
            blank = np.zeros(len(table), dtype=bool)
            blank[forgotten[(forgotten >= rows.start) & (forgotten < rows.stop)] - start] = True
            if blank.any():
                table = _blanked(table, blank, attributes)
            if writer is None:
                writer = pq.ParquetWriter(
                    folder / name, table.schema, compression="zstd", write_page_checksum=True
                )
            writer.write_table(table)
            start = rows.stop
    assert writer is not None
    writer.close()


def _blanked(table: pa.Table, blank: np.ndarray, attributes: Sequence[Attribute]) -> pa.Table:
    """The rows without an id and with attributes' missing values."""
    mask = pa.array(blank)
    ids = table.column("raw_id")
    table = _with(table, "raw_id", pc.if_else(mask, pa.scalar(None, ids.type), ids))
    for each in attributes:
        if each.kind == "vector":
            continue
        column = table.column(each.name)
        nothing = {"single": 0, "multi": [], "number": math.nan}[each.kind]
        filled = pc.if_else(mask, pa.scalar(nothing, column.type), column)
        table = _with(table, each.name, filled)
    return table


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place).with_nullable(True), column)


def _described(
    dataset: Dataset,
    kept: Sequence[EventWindow],
    rewritten: set[str],
    gone: _Gone,
    folder: Path,
) -> Dataset:
    """The description of what was written."""
    names = [*TABLES, *(name for window in kept for name in window.files)]
    names += [file.file for each in dataset.attributes.values() for file in each.vectors]
    files = {
        name: record_of(folder, name) if name in rewritten else dataset.files[name]
        for name in names
    }
    dropped = Counter(dataset.dropped)
    dropped.update({"forgotten_user": gone.users, "old_window": gone.windows})
    trimmed = replace(
        dataset,
        path=str(folder),
        windows=tuple(kept),
        files=files,
        digest=combined_digest(files),
        parent_digest=dataset.digest,
        ancestors=dataset.lineage[:-1],
        dropped={reason: count for reason, count in dropped.items() if count},
    )
    reader = EventReader(trimmed, as_told=False)
    windows = [
        replace(
            window,
            rows=int(reader.users_G[reader.windows_G == number].sum()),
            events=int(reader.count_GSK[reader.windows_G == number].sum()),
        )
        for number, window in enumerate(kept)
    ]
    count_SK, asked_S = reader.count_GSK.sum(axis=0), reader.asked_GS.sum(axis=0)
    splits = splits_of(count_SK, dataset.kinds, asked_S)
    return replace(trimmed, windows=tuple(windows), splits=splits)
