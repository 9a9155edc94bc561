"""Data in windows: appended or prepared at once, against plain Python."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.windows import (
    DAY,
    START,
    Event,
    Log,
    check_counts,
    day_of,
    events_of,
    kept_of,
    make,
    make_log,
    write,
)
from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.loader.loader import Loader
from trainer.prepare.partitions.event_windows import WindowRule
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.retrieval.known import known_at, known_users
from trainer.retrieval.queries import read_queries


@pytest.fixture(scope="module")
def log() -> Log:
    return make_log(1)


@pytest.fixture(scope="module")
def at_once(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("once")
    return make(
        write(log, folder / "log.parquet"), folder / "data", window="day", split="leave-last-out"
    )


@pytest.fixture(scope="module")
def in_pieces(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("pieces")
    for day in range(4):
        piece = [row for row in log if day_of(row[3]) == day]
        source = write(piece, folder / f"{day}.parquet")
        more = {"append": True} if day else {"window": "day", "split": "leave-last-out"}
        made = make(source, folder / "data", **more)
    return made


def test_windows_are_days_and_hold_what_they_should(log: Log, at_once: Dataset) -> None:
    assert len(at_once.windows) == 4 and at_once.window_rule == "day"
    for number, kept in kept_of(log).items():
        own = [each for each in events_of(at_once, number) if each.own]
        assert {(e.user, e.item, e.feedback, e.time) for e in own} == set(kept)
        assert len(own) == len(kept) == at_once.windows[number].events
        assert at_once.windows[number].rows == len({e.user for e in events_of(at_once, number)})
        assert day_of(at_once.windows[number].first_time or 0) == number
        if number < 3:
            assert {e.split for e in own} == {0}, "held out in the newest window alone"


def test_in_pieces_is_at_once(at_once: Dataset, in_pieces: Dataset) -> None:
    """In content: rows of ids differ, ids do not. Duplicates, splits, carried ones included."""
    for window in range(4):
        one, other = (
            sorted(events_of(each, window), key=lambda e: (e.user, e.time, e.item, e.own))
            for each in (at_once, in_pieces)
        )
        assert [replace(e, split=0) for e in one] == [replace(e, split=0) for e in other]
        if window == 3:
            assert one == other, "the newest window's splits too"
    for name in ("train", "validation", "test"):
        assert at_once.splits[name].rows == in_pieces.splits[name].rows
        assert at_once.splits[name].positives == in_pieces.splits[name].positives
    assert at_once.dropped == in_pieces.dropped
    assert (at_once.num_users, at_once.num_items) == (in_pieces.num_users, in_pieces.num_items)


@pytest.mark.parametrize("which", ["at_once", "in_pieces"])
def test_what_is_carried_is_the_last_of_each_sign(
    which: str, log: Log, request: pytest.FixtureRequest
) -> None:
    dataset: Dataset = request.getfixturevalue(which)
    by_day = kept_of(log)
    for window in range(4):
        events = events_of(dataset, window)
        carried = [e for e in events if not e.own]
        wanted: set[tuple[int, int]] = set()
        for user in {e.user for e in events if e.own}:
            before = [row for day in range(window) for row in by_day[day] if row[0] == user]
            before.sort(key=lambda row: row[3])
            for sign in (1, -1):
                rows = [row for row in before if row[2] == sign][-dataset.history_length :]
                wanted |= {(user, row[1]) for row in rows}
        assert {(e.user, e.item) for e in carried} == wanted
        assert len(carried) == len(wanted) and {e.split for e in carried} <= {0}


@pytest.mark.parametrize("which", ["at_once", "in_pieces"])
def test_rows_and_histories_are_those_of_plain_python(
    which: str, log: Log, request: pytest.FixtureRequest
) -> None:
    """Each event is trained on once; its history is what the user liked strictly before."""
    dataset: Dataset = request.getfixturevalue(which)
    users, items = (
        pq.read_table(dataset.file(f"{side}s.parquet"))["raw_id"].to_pylist()
        for side in ("user", "item")
    )
    events = events_of(dataset)
    train = [e for e in events if e.split == 0]
    loader = Loader(
        dataset,
        query_keys=("user", "history", "disliked"),
        local_batch_size=32,
        feedback="all",
    )
    found = {}
    for batch in loader.epoch(0):
        lists = [
            [
                bag.tolist()
                for bag in batch.features[n].values().split(batch.features[n].lengths().tolist())
            ]
            for n in ("history", "disliked")
        ]
        for row in np.flatnonzero(batch.user_B >= 0):
            pair = users[batch.user_B[row]], items[batch.item_S[row]]
            assert pair not in found
            found[pair] = [[items[item] for item in each[row]] for each in lists]
    assert found.keys() == {(e.user, e.item) for e in train}
    for event in train:
        for sign, history in zip((1, -1), found[event.user, event.item], strict=True):
            before = sorted(
                (
                    e
                    for e in train
                    if e.user == event.user and e.feedback == sign and e.time < event.time
                ),
                key=lambda e: e.time,
            )
            wanted = before[-dataset.history_length :]
            assert len(history) == len(wanted)
            assert sorted(history) == sorted(e.item for e in wanted) or _ties(before)


def _ties(events: list[Event]) -> bool:
    """Events of one time may be cut off in either order."""
    return len({e.time for e in events}) < len(events)


@pytest.mark.parametrize("which", ["at_once", "in_pieces"])
def test_queries_see_all_windows(which: str, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(which)
    users, items = (
        pq.read_table(dataset.file(f"{side}s.parquet"))["raw_id"].to_pylist()
        for side in ("user", "item")
    )
    events = events_of(dataset)
    for number, split in ((1, "validation"), (2, "test")):
        asked = dataset.splits[split].queries
        blocks = list(read_queries(dataset, split, np.arange(asked), 7))
        assert sum(map(len, blocks)) == asked > 0
        for block in blocks:
            for row, user_row in enumerate(block.user_Q.tolist()):
                own = [e for e in events if e.user == users[user_row]]
                lists = [
                    {items[i] for i in each.slice(row, row + 1).values.tolist()}
                    for each in (block.targets, block.seen)
                ]
                assert lists[0] == {e.item for e in own if e.split == number and e.feedback > 0}
                assert lists[1] == {e.item for e in own if e.split < number}


def test_users_are_known_by_all_windows(in_pieces: Dataset) -> None:
    items = pq.read_table(in_pieces.file("items.parquet"))["raw_id"].to_pylist()
    users = pq.read_table(in_pieces.file("users.parquet"))["raw_id"].to_pylist()
    events = events_of(in_pieces)
    blocks = list(known_users(in_pieces, 0, in_pieces.num_users, 5))
    rows = [(block, at) for block in blocks for at in range(len(block.seen))]
    chosen = [3, 0, in_pieces.num_users - 1]
    some = known_at(in_pieces, chosen)
    for user_row, (block, at) in enumerate(rows):
        own = {e.item for e in events if e.user == users[user_row]}
        assert {items[i] for i in block.seen.slice(at, at + 1).values.tolist()} == own
        if user_row in chosen:
            place = chosen.index(user_row)
            for name in ("history", "disliked", "seen"):
                one, other = getattr(some, name), getattr(block, name)
                assert one.slice(place, place + 1).values.equal(other.slice(at, at + 1).values)


def test_counts_add_up_over_windows(in_pieces: Dataset) -> None:
    check_counts(in_pieces, events_of(in_pieces))


def test_files_of_old_windows_are_not_written_again(log: Log, tmp_path: Path) -> None:
    first = write([row for row in log if day_of(row[3]) < 3], tmp_path / "a.parquet")
    more = write([row for row in log if day_of(row[3]) == 3], tmp_path / "b.parquet")
    old = make(first, tmp_path / "data", window="day")
    inodes = {name: Path(old.file(name)).stat().st_ino for name in old.windows[0].files}
    new = make(more, tmp_path / "data", append=True)
    assert {name: Path(new.file(name)).stat().st_ino for name in inodes} == inodes
    assert new.parent_digest == old.digest and len(new.windows) == 4
    again = make(more, tmp_path / "data", append=True)
    assert (again.windows, again.splits) == (new.windows, new.splits), "as a job that is repeated"
    check_counts(again, events_of(again))


def test_late_events_come_into_the_new_window(tmp_path: Path) -> None:
    early = [(user, item, 5, START + DAY + item) for user in range(4) for item in range(5)]
    late = [(user, 9, 5, START + user) for user in range(4)]
    make(write(early, tmp_path / "a.parquet"), tmp_path / "data")
    made = make(write(late, tmp_path / "b.parquet"), tmp_path / "data", append=True)
    assert [window.events for window in made.windows] == [20, 4]
    (known,) = known_users(made, 0, 4, 4)
    item = pq.read_table(made.file("items.parquet"))["raw_id"].to_pylist().index(9)
    assert known.history.values[known.history.offsets[:-1]].tolist() == [item] * 4


@pytest.mark.parametrize(
    "text, found",
    [
        ("day", (DAY, None)),
        ("7d", (7 * DAY, None)),
        ("12h", (12 * 3600, None)),
        ("2weeks", (14 * DAY, None)),
        ("5000", (None, 5000)),
        ("100 rows", (None, 100)),
    ],
)
def test_forms_of_a_window(text: str, found: tuple[int | None, int | None]) -> None:
    rule = WindowRule.parse(text)
    assert (rule.seconds, rule.rows) == found


@pytest.mark.parametrize("text", ["", "0", "-1d", "fortnight", "rows", "1e5", "d7", "9" * 30])
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(Mistake, match="--window"):
        PrepareArguments("a", "b", window=text)


def test_windows_need_times(tmp_path: Path) -> None:
    table = pa.table({"user": [1, 1, 2, 2, 3], "item": [1, 2, 1, 3, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(Mistake, match="--window day needs times"):
        make(tmp_path / "a.parquet", tmp_path / "data", window="day")


def test_windows_of_rows(log: Log, tmp_path: Path) -> None:
    made = make(write(log, tmp_path / "a.parquet"), tmp_path / "data", window="200")
    assert len(made.windows) == 3
    times = [(w.first_time, w.last_time) for w in made.windows]
    assert all(a[1] < b[0] for a, b in pairwise(times))  # type: ignore[operator]
