"""Measures of each user, kept so that two models can be compared user by user.

    RUN/evaluation-SPLIT.parquet    user (row of the dataset), recall@20, ndcg@20, ...

Users differ far more from one another than models do on one user: the interval of the mean of
differences is several times narrower than that of either mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.files.storage import StoragePath, write_whole

Z_95 = 1.96


@dataclass(frozen=True)
class Paired:
    """One measure of two models over the same users."""

    name: str
    ours: float
    theirs: float
    half_width: float
    """Of the 95 % interval of the mean difference."""
    users: int

    @property
    def difference(self) -> float:
        return self.ours - self.theirs

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.difference) > self.half_width

    def __str__(self) -> str:
        verdict = "" if self.is_clear else ": within chance"
        return (
            f"{self.name} {self.ours:.4f} beside {self.theirs:.4f}: {self.difference:+.4f} ± "
            f"{self.half_width:.4f} (95 %, paired over {self.users:,} users){verdict}"
        )


def paired(ours: pa.Table, theirs: pa.Table, name: str) -> Paired:
    """Compare a measure over the users that both tables have: the paired normal interval.

    Raises:
        Mistake: where a table has not the measure, or they share fewer than two users.
    """
    for table in (ours, theirs):
        if name not in table.column_names:
            has = ", ".join(table.column_names[1:])
            raise Mistake(f"{name} was not evaluated for both: there are {has}")
    user_a, user_b = (table["user"].to_numpy() for table in (ours, theirs))
    _, row_a, row_b = np.intersect1d(user_a, user_b, assume_unique=True, return_indices=True)
    if len(row_a) < 2:
        raise Mistake("the two were evaluated on different users: evaluate both with one --seed")
    value_a = ours[name].to_numpy()[row_a].astype(np.float64)
    value_b = theirs[name].to_numpy()[row_b].astype(np.float64)
    error = float((value_a - value_b).std(ddof=1)) / math.sqrt(len(row_a))
    return Paired(name, float(value_a.mean()), float(value_b.mean()), Z_95 * error, len(row_a))


def per_user_file(run: StoragePath, split: str) -> StoragePath:
    """Where a run keeps them."""
    return run / f"evaluation-{split}.parquet"


def write_per_user(path: StoragePath, table: pa.Table, dataset_digest: str) -> None:
    """Keep a run's; the dataset's digest says whose rows the users are."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"dataset": dataset_digest}), sink)
    write_whole(path, sink.getvalue().to_pybytes())


def read_per_user(run: StoragePath, split: str, dataset_digest: str) -> pa.Table:
    """What `write_per_user` wrote.

    Raises:
        Mistake: where the run was not evaluated on the split, or on other data.
    """
    path = per_user_file(run, split)
    if not path.is_file():
        raise Mistake(
            f"{run} was not evaluated on {split}: `tandem evaluate {run} --split {split}` first"
        )
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except pa.ArrowInvalid as error:
        raise Mistake(f"{path} cannot be read ({error}): evaluate the run again") from error
    if (table.schema.metadata or {}).get(b"dataset", b"").decode() != dataset_digest:
        raise Mistake(
            f"{run} was evaluated on other data: compare runs on one dataset, evaluated anew"
        )
    return table
