"""Prepare against the plain Python reference, on random interactions with ties and dislikes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.data.planted import Row, interactions, make, queries, table, write_csv
from tests.data.reference import Kept, history_of, query_of, surviving
from trainer.data.schema import SPLITS, Dataset
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


Pair = tuple[int, int]


def read_kept(dataset: Dataset) -> tuple[list[Kept], dict[Pair, dict[str, Any]]]:
    """All rows with raw ids, and the raw output rows by user and item."""
    users = {row["user"]: row["raw_id"] for row in table(dataset, "users")}
    items = {row["item"]: row["raw_id"] for row in table(dataset, "items")}
    kept, by_pair = [], {}
    for number, split in enumerate(SPLITS):
        for row in interactions(dataset, split):
            for name in ("history", "disliked"):
                row[name] = [items[each] for each in row.get(name, [])]
            kept.append(
                Kept(
                    row["position"],
                    users[row["user"]],
                    items[row["item"]],
                    row["feedback"],
                    row.get("timestamp"),
                    number,
                )
            )
            by_pair[kept[-1].user, kept[-1].item] = row
    assert len(by_pair) == len(kept)
    return kept, by_pair


def check_dataset(dataset: Dataset, rows: list[Row], follows_time: bool) -> None:
    """Rows kept, counts, histories and queries are the reference's."""
    kept, output = read_kept(dataset)
    expected, duplicates, neutral = surviving(rows, dataset.source["duplicates"])
    assert {(each.user, each.item) for each in kept} == set(expected)
    assert dataset.dropped.get("duplicate", 0) == duplicates
    assert dataset.dropped.get("neutral_rating", 0) == neutral
    assert len(kept) + sum(dataset.dropped.values()) == dataset.source["rows"] == len(rows)
    for each in kept:
        row = output[each.user, each.item]
        if dataset.has_timestamps:
            assert rows[each.position] == expected[each.user, each.item]
        assert row["history"] == history_of(each, kept, 1, LENGTH)
        if dataset.has_feedback:
            assert row["disliked"] == history_of(each, kept, -1, LENGTH)
    check_queries(dataset, kept, follows_time)
    check_counts(dataset, kept)


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
            cells = len(rows) * (LENGTH + 4)
            patch.setattr(staging, "HISTORY_VALUES_A_PARTITION", -(-cells // parts))
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
