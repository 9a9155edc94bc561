"""One small dataset for the loader's tests."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from trainer.data.schema import Dataset
from trainer.loader.batch import Batch
from trainer.loader.loader import Loader

QUERY_KEYS = ("user", "history", "disliked", "user.age")
CANDIDATE_KEYS = ("item", "item.genre", "item.tags")
WINDOW_ROWS = 300


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1900 train rows in 3 files, 15 row groups of up to 128 rows."""
    return make_dataset(tmp_path_factory.mktemp("loader") / "data")


def make_loader(dataset: Dataset | str | Path, **arguments: object) -> Loader:
    """A loader of all keys, small windows, all rows."""
    defaults = {
        "query_keys": QUERY_KEYS,
        "candidate_keys": CANDIDATE_KEYS,
        "local_batch_size": 64,
        "shuffle_window_rows": WINDOW_ROWS,
        "feedback": "all",
    }
    return Loader(dataset, **{**defaults, **arguments})


def epoch_of(dataset: Dataset | str | Path, epoch: int = 0, **arguments: object) -> list[Batch]:
    """All batches of one epoch."""
    return list(make_loader(dataset, **arguments).epoch(epoch))


def bags(batch: Batch, key: str) -> list[list[int]]:
    """Bags of one key as Python lists, one a row."""
    jagged = batch.features[key]
    return [each.tolist() for each in jagged.values().split(jagged.lengths().tolist())]


Row = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]


def rows_of(batches: Sequence[Batch]) -> list[Row]:
    """(user, item, feedback, history, disliked) of every real row."""
    rows = []
    for batch in batches:
        history, disliked = bags(batch, "history"), bags(batch, "disliked")
        for row in range(batch.local_batch_size):
            if batch.weight_B[row] == 1:
                rows.append(
                    (
                        int(batch.user_B[row]),
                        int(batch.item_S[row]),
                        int(batch.feedback_B[row]),
                        tuple(history[row]),
                        tuple(disliked[row]),
                    )
                )
    return rows


def rows_on_disk(dataset: Dataset, split: str = "train") -> list[Row]:
    """The same of every row in the files."""
    import pyarrow.parquet as pq

    rows = []
    for path in dataset.split_files(split):
        for each in pq.read_table(path).to_pylist():
            ids = (each["user"], each["item"], each["feedback"])
            rows.append((*ids, tuple(each["history"]), tuple(each["disliked"])))
    return rows
