"""What is known of users now, and what was before a split, against their definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.planted import list_at, queries
from tests.datasets import make_dataset
from tests.definitions import Query, by_user, events_of, holds, last, queries_of
from trainer.data.schema import Dataset
from trainer.retrieval.known import KnownUsers, known_at, known_users
from trainer.retrieval.queries import LIST_COLUMNS, QueryBlock, read_queries, sample_rows

USERS = 70


@pytest.fixture(scope="module", params=["ties", "no times", "short"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ties: a user's two last events have often one time. Short: users without an event."""
    folder = tmp_path_factory.mktemp("known") / "data"
    sizes = {"users": USERS, "items": 40, "group_events": 50, "files": 4}
    match request.param:
        case "ties":
            return make_dataset(folder, rows=900, tied=200, disliked=0.3, **sizes)
        case "no times":
            return make_dataset(folder, rows=900, timed=False, **sizes)
        case _:
            return make_dataset(folder, rows=100, **sizes)


def told(known: KnownUsers, row: int) -> tuple[list[int], list[int], list[int]]:
    """History, disliked and seen of one of the users."""
    return list_at(known.history, row), list_at(known.disliked, row), list_at(known.seen, row)


def expected(dataset: Dataset) -> list[tuple[list[int], list[int], list[int]]]:
    """The same of every user, by definition: all events of all splits."""
    own = by_user(events_of(dataset))
    return [
        (
            *(
                list(last([e for e in own.get(user, []) if holds(name, e)], dataset.history_length))
                for name in ("history", "disliked")
            ),
            sorted({e.item for e in own.get(user, [])}),
        )
        for user in range(dataset.num_users)
    ]  # type: ignore[misc]


def test_all_users_in_blocks_of_any_size(dataset: Dataset) -> None:
    whole = expected(dataset)
    for first, stop, block in ((0, USERS, USERS), (0, USERS, 7), (3, 50, 7), (60, USERS, 1)):
        blocks = list(known_users(dataset, first, stop, block))
        assert [each.first for each in blocks] == list(range(first, stop, block))
        found = [told(each, row) for each in blocks for row in range(len(each.seen))]
        assert found == whole[first:stop]
    assert list(known_users(dataset, 5, 5, 7)) == []


@pytest.mark.parametrize("rows", [[], [0], [69, 3, 3, 40], [*range(USERS)], [*range(68, 0, -3)]])
def test_users_of_any_rows(dataset: Dataset, rows: list[int]) -> None:
    whole = expected(dataset)
    known = known_at(dataset, rows)
    assert known.first == -1 and len(known.history) == len(known.seen) == len(rows)
    assert [told(known, row) for row in range(len(rows))] == [whole[user] for user in rows]


def test_users_without_events_have_nothing(dataset: Dataset) -> None:
    """Also where nobody who is asked for has some."""
    more = replace(dataset, num_users=USERS + 9)
    for known in (known_at(more, [USERS, USERS + 8]), *known_users(more, USERS, USERS + 9, 9)):
        assert told(known, 0) == told(known, 1) == ([], [], [])
        assert known.seen.values.dtype == torch.int64 == known.history.offsets.dtype


@pytest.mark.parametrize("split", ["validation", "test"])
def test_queries_are_their_definition(dataset: Dataset, split: str) -> None:
    wanted = queries_of(dataset, split)
    assert dataset.splits[split].queries == len(wanted) > 0
    found = [
        Query(row["user"], *(tuple(row[name]) for name in LIST_COLUMNS))
        for row in queries(dataset, split)
    ]
    assert found == wanted


@pytest.mark.parametrize("block", [1, 3, 8, 1000])
@pytest.mark.parametrize("sample", [1, 2, 10, None])
def test_a_sample_of_queries_is_those_at_its_rows(
    dataset: Dataset, block: int, sample: int | None
) -> None:
    """Blocks are full but for the last, whatever the row groups hold of them."""
    wanted = queries_of(dataset, "test")
    rows = sample_rows(len(wanted), sample, seed=4)
    assert len(rows) == min(sample or len(wanted), len(wanted))
    blocks = list(read_queries(dataset, "test", rows, block))
    sizes = [len(each) for each in blocks]
    assert all(size == block for size in sizes[:-1]) and 0 < sizes[-1] <= block
    found = [query for each in blocks for query in of_block(each)]
    assert found == [wanted[row] for row in rows]
    assert {each.seen.values.dtype for each in blocks} == {torch.int64}


def of_block(block: QueryBlock) -> list[Query]:
    return [
        Query(user, *(tuple(list_at(getattr(block, name), row)) for name in LIST_COLUMNS))
        for row, user in enumerate(block.user_Q.tolist())
    ]


def test_no_queries_at_all(dataset: Dataset) -> None:
    assert list(read_queries(dataset, "test", np.empty(0, dtype=np.int64), 8)) == []


def test_what_was_held_out_is_known_now(tmp_path: Path) -> None:
    """A user's last event, held out for the test, is the newest of what is recommended from."""
    dataset = make_dataset(tmp_path / "data", users=30, items=40, rows=600, disliked=0.0)
    (known,) = known_users(dataset, 0, 30, 30)
    for query in queries_of(dataset, "test"):
        (target,) = query.targets
        history, _, seen = told(known, query.user)
        assert history[-1] == target and target in seen
