"""One small dataset for the loader's tests."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.definitions import by_user, events_of, last, others
from trainer.data.schema import Dataset
from trainer.loader.batch import Batch
from trainer.loader.loader import Loader

QUERY_KEYS = ("user", "history", "disliked", "user.age")
CANDIDATE_KEYS = ("item", "item.genre", "item.tags")
WINDOW_ROWS = 300


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1900 train rows in 3 files, row groups of 128 events and up to a user's more."""
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


def rows_of(batches: Iterable[Batch]) -> list[Row]:
    """(user, item, feedback, history, disliked) of every real row."""
    rows = []
    for batch in batches:
        history, disliked = (
            bags(batch, key) if key in set(batch.features.keys()) else [[]] * batch.local_batch_size
            for key in ("history", "disliked")
        )
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


def expected_rows(dataset: Dataset, *splits: str, limit: int | None = None) -> list[Row]:
    """The same by definition, of a dataset with times; of the train split where none is named."""
    splits = splits or ("train",)
    limit = dataset.history_length if limit is None else limit
    rows = []
    for own in by_user(events_of(dataset)).values():
        for event in own:
            if event.split in splits and event.feedback:
                history, disliked = (
                    last(others(event, own, splits, name), limit)
                    for name in ("history", "disliked")
                )
                rows.append((event.user, event.item, event.feedback, history, disliked))
    return rows
