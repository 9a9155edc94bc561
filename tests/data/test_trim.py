"""Users who are forgotten and windows that leave: in place, whole, and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.windows import check_counts, day_of, events_of, make, make_log, write
from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import prepare
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.retrieval.queries import read_queries

LOG = make_log(3, rows=400)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make(write(LOG, tmp_path / "log.parquet"), tmp_path / "data", window="day")
    return tmp_path / "data"


def trim(data: Path, **arguments: object) -> Dataset:
    prepare(PrepareArguments(str(data), **arguments), SilentProgress())  # type: ignore[arg-type]
    return Dataset.load(data, verify="digest")


def test_forgotten_users_are_in_no_file(data: Path, tmp_path: Path) -> None:
    before = Dataset.load(data)
    events = events_of(before)
    gone = {2, 5, 11}
    file = tmp_path / "gone.txt"
    file.write_text("2\n5\n\n 11\nnobody\n")
    after = trim(data, forget_users=str(file))
    kept = [each for each in events if each.user not in gone]
    assert sorted(map(repr, events_of(after))) == sorted(map(repr, kept))
    for window in range(len(after.windows)):
        assert not {e.user for e in events_of(after, window)} & gone, "carried ones neither"
    users = pq.read_table(after.file("users.parquet"))["raw_id"].to_pylist()
    assert not set(users) & gone and users.count(None) == 3
    assert (after.num_users, after.num_items) == (before.num_users, before.num_items)
    lost = len(events) - len(kept)
    assert after.dropped["forgotten_user"] == lost
    check_counts(after, kept)
    for split in ("validation", "test"):
        asked = after.splits[split].queries
        assert sum(map(len, read_queries(after, split, np.arange(asked), 5))) == asked
    assert after.parent_digest == before.digest


def test_old_windows_leave(data: Path) -> None:
    before = Dataset.load(data)
    events = events_of(before)
    after = trim(data, keep_windows=2)
    assert after.windows == before.windows[-2:]
    kept = [each for each in events if day_of(each.time) >= 2]
    assert sorted(map(repr, events_of(after))) == sorted(map(repr, kept))
    assert after.dropped["old_window"] == len(events) - len(kept)
    assert not (data / "events/00000").exists()
    check_counts(after, kept)


def test_appended_with_both(data: Path, tmp_path: Path) -> None:
    """What SOURCE has of a forgotten user does not come in."""
    file = tmp_path / "gone.txt"
    file.write_text("1\n")
    day = 86_400
    more = write(
        [(1, 3, 5, 1_600_000_000 + 9 * day), (4, 99, 5, 1_600_000_000 + 9 * day)],
        tmp_path / "more.parquet",
    )
    after = make(more, data, append=True, keep_windows=3, forget_users=str(file))
    assert len(after.windows) == 3
    events = events_of(after)
    assert 99 in {e.item for e in events} and 1 not in {e.user for e in events}
    check_counts(after, events)


def test_nothing_to_do_changes_nothing(data: Path, tmp_path: Path) -> None:
    before = Dataset.load(data)
    file = tmp_path / "gone.txt"
    file.write_text("nobody\n")
    assert trim(data, forget_users=str(file), keep_windows=9) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"keep_windows": 0}, "--keep-windows 0"),
        ({"forget_users": "/nowhere"}, "/nowhere cannot be read"),
        ({}, "OUT"),
    ],
)
def test_what_is_refused(data: Path, arguments: dict[str, object], message: str) -> None:
    before = Dataset.load(data)
    with pytest.raises(Mistake, match=message):
        trim(data, **arguments)
    assert Dataset.load(data, verify="digest") == before
