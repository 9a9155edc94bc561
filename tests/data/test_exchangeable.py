"""Without times the order of a source's rows says nothing, and histories are exchangeable."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.planted import Row, interactions, list_at, make, queries, table, write_csv
from trainer.data.schema import Dataset
from trainer.retrieval.known import known_users

LENGTH = 6
USERS, ITEMS, EACH = 300, 60, 20
ORDERS: dict[str, Callable[[Row], Any]] = {
    "by user": lambda row: (row.user, row.item),
    "by item": lambda row: (row.item, row.user),
    "by rating": lambda row: (row.rating, row.item),
    "by item, backwards": lambda row: (-int(row.item), row.user),
}


def rated_rows() -> list[Row]:
    """Users of 20 items each, small ids more often; in random order."""
    draw = random.Random(5)
    rows = []
    for user in range(USERS):
        items = sorted({int(ITEMS * draw.random() ** 2) for _ in range(4 * EACH)})
        rows += [Row(user, item, draw.choice([1, 4, 5, 5])) for item in draw.sample(items, EACH)]
    draw.shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sorted by item: the order of the rows tells all about them."""
    folder = tmp_path_factory.mktemp("exchangeable")
    rows = sorted(rated_rows(), key=ORDERS["by item"])
    return make(write_csv(folder / "rows.csv", rows), folder / "out", history_length=LENGTH)


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_rows_does_not_matter(tmp_path: Path, dataset: Dataset, order: str) -> None:
    rows = sorted(rated_rows(), key=ORDERS[order])
    again = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out", history_length=LENGTH)
    assert again.digest == dataset.digest


def liked(dataset: Dataset, splits: Iterable[str]) -> dict[int, set[int]]:
    """The liked items of each user in some splits."""
    items: dict[int, set[int]] = {}
    for split in splits:
        for row in interactions(dataset, split):
            if row["feedback"] == 1:
                items.setdefault(row["user"], set()).add(row["item"])
    return items


def asked(dataset: Dataset, what: str) -> Iterator[tuple[int | None, set[int], list[int]]]:
    """The row's item (None: a query), what a history is drawn from, and the history."""
    if what == "rows":
        own = liked(dataset, ["train"])
        for row in interactions(dataset, "train"):
            yield row["item"], own[row["user"]] - {row["item"]}, row["history"]
        return
    if what == "queries":
        own = liked(dataset, ["train", "validation"])
        for row in queries(dataset, "test"):
            yield None, own[row["user"]], row["history"]
    else:
        own = liked(dataset, dataset.splits)
        for known in known_users(dataset, 0, dataset.num_users, 1):
            yield None, own[known.first], known.history.values.tolist()


@pytest.mark.parametrize("what", ["rows", "queries", "today"])
def test_histories_are_a_random_part_of_the_users_other_items(dataset: Dataset, what: str) -> None:
    """Item i is in a history of H of n items with the chance H / n, popular or a neighbour or not.

    Sorted by item, file order would give the neighbours of the row's item, or the largest items.
    """
    raw = [row["raw_id"] for row in table(dataset, "items")]
    excess, variance = defaultdict[str, float](float), defaultdict[str, float](float)
    for item, others, history in asked(dataset, what):
        assert set(history) <= others
        assert len(history) == len(set(history)) == min(LENGTH, len(others))
        chance = len(history) / max(len(others), 1)
        for other in others:
            kinds = ["popular" if raw[other] < ITEMS // 4 else "rare"]
            kinds += ["near"] if item is not None and abs(raw[other] - raw[item]) <= 3 else []
            for kind in kinds:
                excess[kind] += (other in history) - chance
                variance[kind] += chance * (1 - chance)
    assert len(excess) == (3 if what == "rows" else 2)
    for kind in excess:
        assert variance[kind] > 50 and abs(excess[kind]) < 4 * variance[kind] ** 0.5, kind


def test_recommending_reads_in_the_order_that_evaluation_does(dataset: Dataset) -> None:
    """What was held out since stands among what was known, as if it had never been."""
    whole = replace(dataset, history_length=EACH)
    (known,) = known_users(whole, 0, whole.num_users, whole.num_users)
    later = 0
    for row in queries(whole, "test"):
        gone = {*row["targets"], *row["disliked_targets"]}
        for name, lists in (("history", known.history), ("disliked", known.disliked)):
            now = list_at(lists, row["user"])
            assert [item for item in now if item not in gone] == row[name]
            later += any(item in gone for item in now[: len(now) // 2])
    assert later > 50


def test_ties_of_times_are_read_alike(tmp_path: Path) -> None:
    """Days as times: one order for training, evaluation and recommending."""
    draw = random.Random(2)
    rows = [
        Row(user, item, None, day)
        for user in range(40)
        for day in range(4)
        for item in draw.sample(range(15 * day, 15 * day + 15), 4)
    ]
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out", history_length=9)
    whole = replace(dataset, history_length=16)
    served = list(known_users(whole, 0, dataset.num_users, 1))
    last = {row["user"]: row for row in interactions(dataset, "test")}
    assert len(last) == 40
    for row in queries(dataset, "test"):
        day = last[row["user"]]["timestamp"]
        assert day == 3
        own = served[row["user"]].history.values.tolist()
        before = [item for item in own if item in row["history"]]
        assert len(own) == 16 and before == row["history"] and len(before) == 9


def test_extended_without_times(tmp_path: Path) -> None:
    """OLD's rating of a pair holds by `--duplicates first`; histories mix old and new items."""
    rows = rated_rows()
    old, new = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    again = [Row(row.user, row.item, 1) for row in old if row.rating == 5][:50]
    made = make(
        write_csv(tmp_path / "old.csv", old),
        tmp_path / "old",
        history_length=LENGTH,
        duplicates="first",
    )
    assert made.splits["train"].disliked > 0
    extended = make(
        write_csv(tmp_path / "new.csv", again + new), tmp_path / "new", extend=made.path
    )
    assert extended.dropped["duplicate"] == 50
    disliked = sum(split.disliked for split in extended.splits.values())
    assert disliked == sum(row.rating == 1 for row in rows)
    own, before = liked(extended, ["train"]), liked(made, ["train"])
    mixed = 0
    for row in interactions(extended, "train"):
        others = own[row["user"]] - {row["item"]}
        assert set(row["history"]) <= others
        assert len(row["history"]) == min(LENGTH, len(others))
        known = len(before[row["user"]] & set(row["history"]))
        mixed += 0 < known < len(row["history"])
    assert mixed > len(interactions(extended, "train")) // 2
