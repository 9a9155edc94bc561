"""A dataset with noise in its train split: random positives added, or true ones taken away.

Held-out rows stay as they are, so results compare across shares. Files are copied one
by one into a folder of our own, by the names in dataset.json; of the dataset's own none is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.data.events.event_files import Events, EventWriter, Layout, part_file, splits_of
from trainer.data.events.event_reader import TRAIN, EventReader, feedback_of
from trainer.data.events.event_rows import EventRows
from trainer.data.parquet import open_parquet
from trainer.data.schema import (
    Dataset,
    EventWindow,
    Kind,
    combined_digest,
    record_of,
)
from trainer.files.filesystems import stays_within

EVENTS, ITEMS = part_file(0, 0), "items.parquet"
REMOVED = "removed by noise"


def noisy_dataset(dataset: Dataset, out: Path, added: float, removed: float, seed: int) -> Dataset:
    """Write a copy of `dataset` whose train split has `added` more rows and `removed` fewer.

    An added row is a train row with its item replaced by a random one, at the same time; histories
    hold it. A removed one is a liked one that is no longer trained on; it stays in histories and is
    left out of rankings. Shares are of the train rows, and of the liked ones among them, in
    the mean.

    Args:
        out: an empty folder.
    """
    random = np.random.default_rng(seed)
    changed = {ITEMS, *dataset.event_names}
    _copy(dataset, [name for name in dataset.files if name not in changed], out)
    kinds = (*dataset.kinds, Kind(REMOVED, "seen"))
    layout = Layout(
        dataset.num_users, dataset.num_items, kinds, dataset.has_timestamps, with_split=True
    )
    reader = EventReader(dataset)
    liked_I = np.zeros(dataset.num_items, dtype=np.int64)
    with EventWriter(out / EVENTS, layout) as writer:
        for first in reader.user_ranges(0, dataset.num_users):
            rows = reader.of_users(*first)
            if len(rows.item_E):
                events = _noisy(rows, dataset, added, removed, random)
                counted_E = (events.split_E == TRAIN) & (feedback_of(kinds)[events.kind_E] > 0)
                liked_I += np.bincount(events.item_E[counted_E], minlength=dataset.num_items)
                writer.write(events)
    _recount(dataset, liked_I, out)
    return _described(dataset, out, kinds, writer)


def _noisy(
    rows: EventRows, dataset: Dataset, added: float, removed: float, random: np.random.Generator
) -> Events:
    """The events with random ones behind those they were made of; removed ones of another kind."""
    liked = next(n for n, kind in enumerate(dataset.kinds) if kind.role == "positive")
    train_E = (rows.split_E == TRAIN) & (rows.feedback_E != 0)
    repeats_E = 1 + train_E * random.poisson(added, len(train_E))
    place = np.repeat(np.arange(len(repeats_E)), repeats_E)
    new = np.append(False, place[1:] == place[:-1])
    item = np.where(new, random.integers(0, dataset.num_items, len(place)), rows.item_E[place])
    liked_E = train_E & (rows.feedback_E > 0)
    gone = ~new & liked_E[place] & (random.random(len(place)) < removed)
    kind = np.where(gone, len(dataset.kinds), rows.kind_E[place])
    return Events(
        rows.user_R[rows.row_E[place]],
        item,
        np.where(new, liked, kind).astype(np.int8),
        rows.split_E[place],
        None if rows.time_E is None else rows.time_E[place],
    )


def _copy(dataset: Dataset, names: Iterable[str], out: Path) -> None:
    """Copy files of the dataset, by their names within it."""
    for name in names:
        if not stays_within(name):
            raise Mistake(
                f"{dataset.path}/dataset.json names the file {name!r}, which is not in its folder: "
                "it is damaged or was made by someone else, and is not copied"
            )
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem, inner = fsspec.core.url_to_fs(dataset.file(name))
        filesystem.get_file(inner, str(target))


def _recount(dataset: Dataset, liked_I: np.ndarray, out: Path) -> None:
    """items.parquet with the counts of the new train split."""
    with open_parquet(dataset.file(ITEMS)) as file:
        items = file.read()
    place = items.schema.get_field_index("count")
    counted = items.set_column(place, "count", pa.array(liked_I))
    pq.write_table(counted, out / ITEMS, write_page_checksum=True)


def _described(
    dataset: Dataset, out: Path, kinds: tuple[Kind, ...], writer: EventWriter
) -> Dataset:
    gone = {ITEMS, *dataset.event_names}
    files = {name: record for name, record in dataset.files.items() if name not in gone} | {
        name: record_of(out, name) for name in (EVENTS, ITEMS)
    }
    noisy = replace(
        dataset,
        path=str(out),
        windows=(EventWindow((EVENTS,), writer.users, int(writer.count_SK.sum())),),
        kinds=kinds,
        splits=splits_of(writer.count_SK, kinds, writer.asked_S),
        files=files,
        digest=combined_digest(files),
    )
    (out / "dataset.json").write_text(noisy.to_json())
    return Dataset.load(out)
