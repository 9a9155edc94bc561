"""Events written and read again, whatever the calls, cuts and types."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import make_dataset
from tests.definitions import Event, by_user, events_of
from trainer.base.split_names import SPLITS
from trainer.data.events.event_files import Events, EventWriter, Layout, splits_of
from trainer.data.events.event_reader import EventReader, EventRows, each_event
from trainer.data.schema import DISLIKED, LIKED, Dataset, EventWindow, Kind

PLAYED = Kind("played", "history")
KINDS = (LIKED, DISLIKED, PLAYED)
Log = list[tuple[int, int, int, int, int]]
"""(user, item, time, kind, split), a user's together, users ascending."""


@st.composite
def logs(draw: st.DrawFn) -> tuple[Log, list[int]]:
    """A log, and the places at which it is cut into calls: within a user too."""
    users = draw(st.lists(st.integers(0, 40), unique=True, max_size=9))
    log = [
        (user, draw(st.integers(0, 9)), time, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        for user in sorted(users)
        for time in range(draw(st.integers(1, 12)))
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(log)), max_size=4)))
    return log, cuts


def events(log: Log, layout: Layout) -> Events:
    user, item, time, kind, split = np.array(log, dtype=np.int64).reshape(-1, 5).T
    small = (kind.astype(np.int8), split.astype(np.int8))
    return Events(user, item, *small, time if layout.with_time else None)


def write(path: Path, layout: Layout, calls: list[Log], least: int) -> EventWriter:
    with EventWriter(path, layout, least) as writer:
        for call in calls:
            writer.write(events(call, layout))
    return writer


def described(base: Dataset, layout: Layout, folder: Path, written: list[EventWriter]) -> Dataset:
    """A dataset of files f0, f1, ...; nothing but its events is there."""
    counted = sum(writer.count_SK for writer in written)
    assert isinstance(counted, np.ndarray)
    return replace(
        base,
        path=str(folder),
        num_users=layout.num_users,
        num_items=layout.num_items,
        kinds=layout.kinds,
        has_timestamps=layout.with_time,
        windows=(
            EventWindow(
                tuple(f"f{number}" for number in range(len(written))),
                sum(writer.users for writer in written),
                int(counted.sum()),
            ),
        ),
        splits=splits_of(counted, layout.kinds, sum(writer.asked_S for writer in written)),  # type: ignore[arg-type]
    )


def log_of(rows: EventRows, kinds: tuple[Kind, ...]) -> Log:
    """The events again; kinds by their feedback."""
    kind_of = {1: 0, -1: 1, 0: 2}
    time_E = rows.time_E if rows.time_E is not None else np.zeros(len(rows.item_E), dtype=int)
    return list(
        zip(
            rows.user_R[rows.row_E].tolist(),
            rows.item_E.tolist(),
            time_E.tolist(),
            [kind_of[each] for each in rows.feedback_E.tolist()],
            rows.split_E.tolist(),
            strict=True,
        )
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """100 users of 20 events, row groups of 128 and up to a user's more, in 3 files."""
    return make_dataset(tmp_path_factory.mktemp("events") / "data", users=100, tied=60)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(written=logs(), least=st.integers(1, 15), timed=st.booleans(), split_at=st.integers(0, 41))
def test_what_is_written_is_read(
    base: Dataset, written: tuple[Log, list[int]], least: int, timed: bool, split_at: int
) -> None:
    """In two files, cut at a user; one of them may be empty, or both."""
    log, cuts = written
    layout = Layout(41, 10, KINDS, timed, with_split=True)
    calls = [log[a:b] for a, b in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    parts = [
        [[each for each in call if (each[0] < split_at) == early] for call in calls]
        for early in (True, False)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writers = [write(folder / f"f{n}", layout, part, least) for n, part in enumerate(parts)]
        dataset = described(base, layout, folder, writers)
        reader = EventReader(dataset)
        groups = [reader.read(group) for group in range(reader.num_groups)]
        expected = [(u, i, t if timed else 0, k, s) for u, i, t, k, s in log]
        assert [each for rows in groups for each in log_of(rows, KINDS)] == expected
        check_groups(reader, groups, least, [part for part in parts if any(part)])
        assert sum(writer.users for writer in writers) == len({each[0] for each in log})
        for first, stop in ((0, 41), (3, 17), (17, 18), (40, 41)):
            got = log_of(reader.of_users(first, stop), KINDS)
            assert got == [each for each in expected if first <= each[0] < stop]
        for number, split in enumerate(SPLITS):
            found = [
                each
                for users, items, feedbacks in each_event(dataset, (split,))
                for each in zip(users.tolist(), items.tolist(), feedbacks.tolist(), strict=True)
            ]
            feedback = (1, -1, 0)
            assert found == [(u, i, feedback[k]) for u, i, _, k, s in expected if s == number]
        whole = write(folder / "again", layout, [[e for e in log if e[0] < split_at]], least)
        assert whole.users == writers[0].users
        digests = [hashlib.sha256((folder / f).read_bytes()).digest() for f in ("f0", "again")]
        assert digests[0] == digests[1]  # cuts depend on the events, not on the calls


def check_groups(
    reader: EventReader, groups: list[EventRows], least: int, parts: list[list[Log]]
) -> None:
    """Groups are of whole users, full but for each file's last, and what the footers say."""
    users = [rows.user_R.tolist() for rows in groups]
    assert [user for each in users for user in each] == sorted({u for each in users for u in each})
    sizes = [len(rows.item_E) for rows in groups]
    short = [size for size in sizes if size < least]
    assert len(short) <= len(parts)
    for rows, size in zip(groups, sizes, strict=True):
        last = int(np.diff(rows.offsets_R)[-1])
        assert size - last < least or size - last < 1
    for group, rows in enumerate(groups):
        assert reader.users_G2[group].tolist() == [rows.user_R[0], rows.user_R[-1]]
        for split in range(3):
            inside = rows.split_E == split
            liked = inside & (rows.feedback_E > 0)
            assert reader.asked_GS[group, split] == len(np.unique(rows.row_E[liked]))
            for kind, feedback in enumerate((1, -1, 0)):
                count = np.count_nonzero(inside & (rows.feedback_E == feedback))
                assert reader.count_GSK[group, split, kind] == count
    splits = ("train", "test")
    expected = [np.isin(r.split_E, (0, 2)) & (r.feedback_E != 0) for r in groups]
    assert reader.count(splits, "all").tolist() == [np.count_nonzero(each) for each in expected]


def test_the_columns_follow_the_data(tmp_path: Path) -> None:
    """32 bits where all ids fit; no kind where there is one, no split where nothing is held out."""
    for users, items, kinds, timed, split, names in (
        (9, 9, (LIKED,), False, False, {"user": "int32", "item": "int32"}),
        (2**31, 2**31 - 1, (LIKED,), True, False, {"user": "int64", "item": "int32", "time": 1}),
        (2**31 - 1, 2**31, KINDS, False, True, {"user": "int32", "item": "int64", "kind": 1}),
    ):
        layout = Layout(users, items, kinds, timed, split)
        write(tmp_path / "f", layout, [[(1, 2, 3, 0, 0)]], 4)
        schema = pq.read_schema(tmp_path / "f")
        assert schema.names == [*names, *(["split"] if split else [])]
        assert str(schema.field("user").type) == names["user"]
        assert str(schema.field("item").type) == names["item"]
        assert not any(field.nullable for field in schema)


def test_what_a_writer_is_not_given_in_order(tmp_path: Path) -> None:
    layout = Layout(9, 9, (LIKED,), True, False)
    for log in ([(3, 1, 1, 0, 0), (2, 1, 1, 0, 0)], [(n, 1, 1, 0, 0) for n in (1, 2, 3, 1)]):
        with pytest.raises(AssertionError, match="users must ascend"):
            write(tmp_path / "f", layout, [[each] for each in log], 1)  # type: ignore[list-item]


def test_a_file_that_was_broken_off_is_no_dataset(tmp_path: Path) -> None:
    """Its rows that were waiting are lost, and its footer says so: nobody takes it for whole."""
    layout = Layout(9, 9, (LIKED,), True, False)
    with (
        pytest.raises(ZeroDivisionError),
        EventWriter(tmp_path / "f", layout, 1) as writer,
    ):
        writer.write(events([(n, 1, 1, 0, 0) for n in range(4)], layout))
        raise ZeroDivisionError
    assert pq.ParquetFile(tmp_path / "f").metadata.num_rows < 4


def test_events_of_users_are_the_files(base: Dataset) -> None:
    """`of_users` in ranges of any size, forwards or again, with users that nobody has."""
    whole = by_user(events_of(base))
    reader = EventReader(base)
    for first, stop in ((0, 5), (5, 40), (0, 100), (99, 100), (100, 100)):
        rows = reader.of_users(first, stop)
        assert rows.user_R.tolist() == [user for user in whole if first <= user < stop]
        found = [whole[user] for user in rows.user_R.tolist()]
        expected: list[Event] = [event for own in found for event in own]
        assert rows.item_E.tolist() == [each.item for each in expected]
        assert rows.time_E is not None or not expected
        assert rows.feedback_E.tolist() == [each.feedback for each in expected]
