"""The public datasets beside the project, where they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.planted import interactions, make, queries, table

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def source_of(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.timeout(600)  # some ten CPU seconds, on a machine that may be shared
def test_gowalla(tmp_path: Path) -> None:
    dataset = make(source_of("gowalla"), tmp_path / "out", memory_limit="1GB", threads=2)
    assert (dataset.num_users, dataset.num_items) == (29_858, 40_981)
    train, validation, test = (dataset.splits[each] for each in ("train", "validation", "test"))
    assert train.rows + validation.rows == 810_128
    assert abs(validation.rows - 81_013) < 300
    assert test.rows == 217_242 and test.queries == 29_858
    assert dataset.dropped == {}


def test_ml_100k(tmp_path: Path) -> None:
    dataset = make(source_of("ml-100k"), tmp_path / "out")
    assert (dataset.num_users, dataset.num_items) == (943, 1_682)
    assert sum(each.positives for each in dataset.splits.values()) == 55_375
    assert sum(each.disliked for each in dataset.splits.values()) == 17_480
    assert dataset.dropped == {"neutral_rating": 27_145}
    titles = {row["raw_id"]: row["title"] for row in table(dataset, "items")}
    assert titles[1] == "Toy Story"
    assert {each.name for each in dataset.item_attributes} == {"release_year", "class"}
    latest: dict[int, int] = {}
    for row in interactions(dataset, "train"):
        latest[row["user"]] = max(latest.get(row["user"], 0), row["timestamp"])
    assert all(row["timestamp"] >= latest[row["user"]] for row in interactions(dataset, "test"))
    for row in queries(dataset, "test"):
        assert not set(row["targets"]) & set(row["seen"])
        assert set(row["history"]) | set(row["disliked"]) <= set(row["seen"])
