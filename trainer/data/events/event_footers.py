"""What the footers of the events' files say of their row groups, read and checked.

Under the key "tandem" of each row group: first and last user, users, users with a positive event in
each split, own events by split and kind. That is what a loader and an evaluation need to know of
all files before they read any, and a stranger's may say anything.

Shapes: G = row groups, S = the three splits, K = kinds of events.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.data.description import AGAIN, check_columns
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset

FOOTER_KEY = b"tandem"


def read_footer(
    path: str, columns: dict[str, str], kinds: int
) -> tuple[pq.FileMetaData, np.ndarray]:
    """A file's footer and what it says of its row groups, int64 [groups, 6 + 3 K]."""
    with open_parquet(path) as file:
        check_columns(path, file.schema_arrow, columns)
        metadata = file.metadata
    rows_G = np.array(
        [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)],
        dtype=np.int64,
    )
    try:
        facts = np.array(json.loads((metadata.metadata or {})[FOOTER_KEY]), dtype=np.int64)
        facts = facts.reshape(len(rows_G), 3 + len(SPLITS) * (1 + kinds))
        if (facts < 0).any() or (facts[:, 2:] > rows_G[:, None]).any():
            raise ValueError("numbers below 0, or above the rows")
        own_G = facts[:, 3 + len(SPLITS) :].sum(axis=1)
        carried = "carried" in metadata.schema.names
        if (own_G > rows_G).any() or (not carried and (own_G != rows_G).any()):
            raise ValueError("other rows than the file's")
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Mistake(
            f"{path} does not say what its row groups hold ({type(error).__name__}): {AGAIN}"
        ) from error
    return metadata, facts


def check_totals(
    dataset: Dataset, asked_GS: np.ndarray, count_GSK: np.ndarray, feedback_K: np.ndarray
) -> None:
    """Raise Mistake where the footers count other events or queries than dataset.json."""
    asked_S, count_SK = asked_GS.sum(axis=0), count_GSK.sum(axis=0)
    for name, asked, count_K in zip(SPLITS, asked_S, count_SK, strict=True):
        told = dataset.splits[name]
        for what, held, expected in (
            ("events", count_K.sum(), told.rows),
            ("liked", count_K[feedback_K > 0].sum(), told.positives),
            ("disliked", count_K[feedback_K < 0].sum(), told.disliked),
            ("queries", 0 if name == "train" else asked, told.queries),
        ):
            if held != expected:
                raise Mistake(
                    f"the events' files of {dataset.path} hold {held} {what} of {name}, "
                    f"dataset.json says {expected}: {AGAIN}"
                )


def check_ascending(
    users_G2: np.ndarray, window_G: np.ndarray, where: Callable[[int], str]
) -> None:
    """Raise Mistake where users do not ascend through the row groups of a window."""
    first_G, last_G = users_G2.T
    wrong_G = first_G > last_G
    wrong_G[1:] |= (first_G[1:] <= last_G[:-1]) & (window_G[1:] == window_G[:-1])
    if wrong_G.any():
        raise Mistake(f"{where(int(np.argmax(wrong_G)))}: users do not ascend: {AGAIN}")
