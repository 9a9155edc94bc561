"""Measures kept user by user, and two runs compared over the same users."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.base.mistake import Mistake
from trainer.observe.per_user import (
    paired,
    per_user_file,
    read_per_user,
    write_per_user,
)


def table(user: list[int], value: list[float]) -> pa.Table:
    return pa.table({"user": user, "ndcg@20": pa.array(value, pa.float32())})


def test_pairs_are_of_the_users_that_both_have() -> None:
    ours, theirs = table([1, 4, 5, 9], [0.5, 0.25, 1, 0]), table([4, 5, 6, 9], [0, 0.5, 1, 0])
    found = paired(ours, theirs, "ndcg@20")
    differences = np.array([0.25, 0.5, 0])
    assert found.users == 3
    assert found.difference == pytest.approx(differences.mean())
    assert found.half_width == pytest.approx(1.96 * differences.std(ddof=1) / math.sqrt(3))
    assert "within chance" in str(found)


def test_the_interval_covers_no_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        base = random.random(200)
        ours, theirs = (base + random.normal(0, 0.05, 200) for _ in range(2))
        users = list(range(200))
        covered += not paired(table(users, ours), table(users, theirs), "ndcg@20").is_clear
    assert 0.92 < covered / 400 < 0.98


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"recall@20 was not evaluated for both: there are ndcg@20"):
        paired(table([1, 2], [0, 1]), table([1, 2], [0, 1]), "recall@20")
    with pytest.raises(Mistake, match="different users"):
        paired(table([1, 2], [0, 1]), table([2, 3], [0, 1]), "ndcg@20")
    with pytest.raises(Mistake, match="was not evaluated on test: `tandem evaluate"):
        read_per_user(tmp_path, "test", "d")
    file = per_user_file(tmp_path, "test")
    write_per_user(file, table([1, 2], [0, 1]), "digest")
    assert read_per_user(tmp_path, "test", "digest").num_rows == 2
    with pytest.raises(Mistake, match="on other data"):
        read_per_user(tmp_path, "test", "another")
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(Mistake, match="cannot be read"):
        read_per_user(tmp_path, "test", "digest")
