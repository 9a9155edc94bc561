"""A dataset with noise in its train split: random positives added, or true ones taken away.

Held-out splits and queries stay as they are, so results compare across shares.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.schema import Dataset, FileRecord, combined_digest, sha256_of
from trainer.data.storage import open_parquet

ROW_GROUP_ROWS = 32_768


def noisy_dataset(dataset: Dataset, out: Path, added: float, removed: float, seed: int) -> Dataset:
    """Write a copy of `dataset` whose train split has `added` more rows and `removed` fewer.

    An added row is a train row of a random user with its item replaced by a random one: the user's
    history stays true. Shares are of the train rows.
    """
    random = np.random.default_rng(seed)
    shutil.copytree(dataset.path, out, ignore=shutil.ignore_patterns(".derived"))
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
    name = dataset.splits["train"].files[0]
    for other in dataset.splits["train"].files:
        (out / other).unlink()
    pq.write_table(noisy, out / name, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
    _recount(out, noisy, dataset.num_items)
    return _described(dataset, out, noisy, name)


def _read(path: str) -> pa.Table:
    with open_parquet(path) as file:
        return file.read()


def _recount(out: Path, train: pa.Table, num_items: int) -> None:
    """items.parquet with the counts of the new train split."""
    liked = train.column("feedback").to_numpy() > 0
    counts = np.bincount(train.column("item").to_numpy()[liked], minlength=num_items)
    items = pq.read_table(out / "items.parquet")
    place = items.schema.get_field_index("count")
    pq.write_table(
        items.set_column(place, "count", pa.array(counts)),
        out / "items.parquet",
        write_page_checksum=True,
    )


def _described(dataset: Dataset, out: Path, train: pa.Table, name: str) -> Dataset:
    positives = int((train.column("feedback").to_numpy() > 0).sum())
    split = replace(
        dataset.splits["train"],
        rows=len(train),
        positives=positives,
        disliked=len(train) - positives,
        files=(name,),
    )
    gone = set(dataset.splits["train"].files) - {name}
    changed = {name, "items.parquet"}
    filesystem = fsspec.filesystem("file")
    files = {
        key: FileRecord((out / key).stat().st_size, sha256_of(filesystem, str(out / key)))
        if key in changed
        else record
        for key, record in dataset.files.items()
        if key not in gone
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
