"""A dataset with noise in its train split: random positives added, or true ones taken away.

Held-out splits and queries stay as they are, so results compare across shares. Files are copied one
by one into a folder of our own, by the names in dataset.json; of the dataset's own none is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset, FileRecord, combined_digest, sha256_of

ROW_GROUP_ROWS = 32_768
TRAIN, ITEMS = "train/part-00000.parquet", "items.parquet"


def noisy_dataset(dataset: Dataset, out: Path, added: float, removed: float, seed: int) -> Dataset:
    """Write a copy of `dataset` whose train split has `added` more rows and `removed` fewer.

    An added row is a train row of a random user with its item replaced by a random one: the user's
    history stays true. Shares are of the train rows.

    Args:
        out: an empty folder.
    """
    random = np.random.default_rng(seed)
    changed = {*dataset.splits["train"].files, ITEMS}
    _copy(dataset, [name for name in dataset.files if name not in changed], out)
    paths = dataset.split_files("train")
    table = pa.concat_tables([_read(path) for path in paths])
    kept = random.random(len(table)) >= removed
    extra = table.take(random.integers(0, len(table), round(added * len(table))))
    items = pa.array(random.integers(0, dataset.num_items, len(extra)))
    extra = extra.set_column(extra.schema.get_field_index("item"), "item", items)
    if "feedback" in extra.column_names:
        place = extra.schema.get_field_index("feedback")
        extra = extra.set_column(place, "feedback", pa.array(np.ones(len(extra), dtype=np.int8)))
    noisy = pa.concat_tables([table.filter(pa.array(kept)), extra.cast(table.schema)])
    noisy = noisy.take(random.permutation(len(noisy)))
    (out / TRAIN).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(noisy, out / TRAIN, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
    _recount(dataset, noisy, out)
    return _described(dataset, out, noisy)


def _read(path: str) -> pa.Table:
    with open_parquet(path) as file:
        return file.read()


def _copy(dataset: Dataset, names: Iterable[str], out: Path) -> None:
    """Copy files of the dataset, by their names within it."""
    for name in names:
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or not parts:
            raise Mistake(
                f"{dataset.path}/dataset.json names the file {name!r}, which is not in its folder: "
                "it is damaged or was made by someone else, and is not copied"
            )
        target = out.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem, inner = fsspec.core.url_to_fs(dataset.file(name))
        filesystem.get_file(inner, str(target))


def _recount(dataset: Dataset, train: pa.Table, out: Path) -> None:
    """items.parquet with the counts of the new train split."""
    liked = train.column("feedback").to_numpy() > 0
    counts = np.bincount(train.column("item").to_numpy()[liked], minlength=dataset.num_items)
    items = _read(dataset.file(ITEMS))
    place = items.schema.get_field_index("count")
    counted = items.set_column(place, "count", pa.array(counts))
    pq.write_table(counted, out / ITEMS, write_page_checksum=True)


def _described(dataset: Dataset, out: Path, train: pa.Table) -> Dataset:
    positives = int((train.column("feedback").to_numpy() > 0).sum())
    split = replace(
        dataset.splits["train"],
        rows=len(train),
        positives=positives,
        disliked=len(train) - positives,
        files=(TRAIN,),
    )
    filesystem = fsspec.filesystem("file")
    gone = {*dataset.splits["train"].files, ITEMS}
    files = {name: record for name, record in dataset.files.items() if name not in gone} | {
        name: FileRecord((out / name).stat().st_size, sha256_of(filesystem, str(out / name)))
        for name in (TRAIN, ITEMS)
    }
    noisy = replace(
        dataset,
        path=str(out),
        splits={**dataset.splits, "train": split},
        files=files,
        digest=combined_digest(files),
    )
    (out / "dataset.json").write_text(noisy.to_json())
    return Dataset.load(out)
