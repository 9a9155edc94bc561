"""Prepare against the plain Python reference, on random interactions with ties and dislikes."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.data.planted import Row, make, queries, table, trained, write_csv
from tests.data.reference import Kept, feedback_of, pool_of, query_of, surviving
from tests.definitions import events_of
from trainer.base.split_names import SPLITS
from trainer.data.schema import Dataset
from trainer.prepare import staging

LENGTH = 3
EXAMPLES = 5


def rows_strategy(timed: bool, rated: bool) -> st.SearchStrategy[list[Row]]:
    row = st.builds(
        Row,
        user=st.integers(0, 5),
        item=st.integers(10, 21),
        rating=st.sampled_from([1, 2, 3, 4, 5, 5, 5]) if rated else st.none(),
        timestamp=st.integers(0, 12) if timed else st.none(),
    )
    base = [
        Row(user, 10 + user * 2 + n, (1 + 4 * (n % 2)) if rated else None, n if timed else None)
        for user in (0, 1)
        for n in (0, 1)
    ]
    return st.lists(row, min_size=40, max_size=90).map(lambda rows: base + rows)


def read_kept(dataset: Dataset) -> list[Kept]:
    """All rows with raw ids."""
    users = {row["user"]: row["raw_id"] for row in table(dataset, "users")}
    items = {row["item"]: row["raw_id"] for row in table(dataset, "items")}
    return [
        Kept(
            each.place,
            users[each.user],
            items[each.item],
            each.feedback,
            each.time,
            SPLITS.index(each.split),
        )
        for each in events_of(dataset)
    ]


def check_dataset(dataset: Dataset, rows: list[Row], follows_time: bool) -> None:
    """Rows kept, counts, histories and queries are the reference's."""
    kept = read_kept(dataset)
    expected, duplicates, neutral = surviving(rows, dataset.source["duplicates"])
    assert dataset.dropped.get("duplicate", 0) == duplicates
    assert dataset.dropped.get("neutral_rating", 0) == neutral
    assert len(kept) + sum(dataset.dropped.values()) == dataset.source["rows"] == len(rows)
    assert {(each.user, each.item) for each in kept} == set(expected)
    source = [expected[each.user, each.item] for each in kept]
    assert [each.feedback for each in kept] == [feedback_of(rows[place]) for place in source]
    if dataset.has_timestamps:
        assert [each.timestamp for each in kept] == [rows[place].timestamp for place in source]
        by_user: dict[Any, list[tuple[Any, int]]] = {}
        for each, place in zip(kept, source, strict=True):
            by_user.setdefault(each.user, []).append((each.timestamp, place))
        assert all(own == sorted(own) for own in by_user.values())  # ties as in the source
    for splits in ((0,), (0, 1), (2,)):
        if any(each.split in splits for each in kept):
            check_histories(dataset, kept, splits)
    check_queries(dataset, kept, follows_time)
    check_counts(dataset, kept)


def check_histories(dataset: Dataset, kept: list[Kept], splits: tuple[int, ...]) -> None:
    """Lists of the rows of some splits; without times another random part in every epoch."""
    users = {row["user"]: row["raw_id"] for row in table(dataset, "users")}
    items = {row["item"]: row["raw_id"] for row in table(dataset, "items")}
    epochs = [
        {(users[u], items[i]): each for (u, i), each in lists.items()}
        for epoch in (0, 1)
        for lists in [trained(dataset, tuple(SPLITS[each] for each in splits), epoch)]
    ]
    rows = [each for each in kept if each.split in splits]
    assert {(each.user, each.item) for each in rows} == set(epochs[0])
    places = {(each.user, each.item): each.place for each in kept}
    chosen = {True: 0, False: 0}
    for each in rows:
        for name, feedback in (("history", 1), ("disliked", -1))[: 1 + dataset.has_feedback]:
            pool = pool_of(each, kept, feedback, splits)
            first, second = ([items[i] for i in e[each.user, each.item][name]] for e in epochs)
            assert len(first) == len(second) == min(LENGTH, len(pool))
            if dataset.has_timestamps:
                assert first == second == pool[len(pool) - len(first) :]
                continue
            for found in (first, second):
                assert set(found) <= set(pool) and len(set(found)) == len(found)
                at = [places[each.user, item] for item in found]
                # In the user's own order, begun behind the row and gone round once at most.
                assert sum(a > b for a, b in itertools.pairwise(at)) <= 1
            if len(pool) > LENGTH > 0:
                chosen[first != second] += 1
    if sum(chosen.values()) > 20:
        assert chosen[True] > 0


def check_queries(dataset: Dataset, kept: list[Kept], follows_time: bool) -> None:
    users = {row["user"]: row["raw_id"] for row in table(dataset, "users")}
    items = {row["item"]: row["raw_id"] for row in table(dataset, "items")}
    for number, split in ((1, "validation"), (2, "test")):
        written = queries(dataset, split)
        assert [row["user"] for row in written] == sorted(row["user"] for row in written)
        assert all(row["seen"] == sorted(row["seen"]) for row in written)
        found = {
            users[row["user"]]: {
                "targets": [items[each] for each in row["targets"]],
                "disliked_targets": [items[each] for each in row.get("disliked_targets", [])],
                "seen": {items[each] for each in row["seen"]},
                "history": [items[each] for each in row["history"]],
                "disliked": [items[each] for each in row.get("disliked", [])],
            }
            for row in written
        }
        expected = {
            user: query
            for user in users.values()
            if (query := query_of(user, number, kept, LENGTH, follows_time)) is not None
        }
        assert found == expected
        assert dataset.splits[split].queries == len(expected)


def check_counts(dataset: Dataset, kept: list[Kept]) -> None:
    for row in table(dataset, "items"):
        own = [each.split for each in kept if each.item == row["raw_id"] and each.feedback == 1]
        assert row["count"] == own.count(0)
        assert row["count_with_validation"] == own.count(0) + own.count(1)
    for number, split in enumerate(SPLITS):
        of_split = [each.feedback for each in kept if each.split == number]
        assert dataset.splits[split].positives == of_split.count(1)
        assert dataset.splits[split].disliked == of_split.count(-1)


@pytest.mark.parametrize(
    ("rule", "timed", "rated", "parts"),
    [
        ("leave-last-out", True, False, 1),
        ("leave-last-out", True, True, 3),
        ("time", True, True, 2),
        ("random", True, True, 1),
        ("random", False, True, 2),
        ("random", False, False, 1),
    ],
)
def test_random_interactions(rule: str, timed: bool, rated: bool, parts: int) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(rows_strategy(timed, rated))
    def check(rows: list[Row]) -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(staging, "ROWS_A_PARTITION", -(-len(rows) // parts))
            source = write_csv(Path(folder) / "rows.csv", rows)
            try:
                dataset = make(
                    source, Path(folder) / "out", split=rule, history_length=LENGTH, seed=len(rows)
                )
            except ValueError as error:
                assume("leaves no positive" not in str(error))
                raise
            check_dataset(dataset, rows, rule in ("time", "leave-last-out"))

    check()


@pytest.mark.parametrize("length", [0, 1, 50])
def test_history_lengths(tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.data.test_prepare_reference.LENGTH", length)
    rows = [Row(user, 10 + (user + n * n) % 13) for n in range(9) for user in range(5)]
    dataset = make(
        write_csv(tmp_path / "rows.csv", rows),
        tmp_path / "out",
        split="random",
        test_share=0.2,
        validation_share=0.2,
        history_length=length,
    )
    check_dataset(dataset, rows, follows_time=False)
