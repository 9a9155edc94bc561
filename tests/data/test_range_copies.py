"""Ranges copied by the kernel and by numpy: the same values, of every type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from losses.kernels.native import library_of
from trainer.data import range_copies
from trainer.data.jagged import Jagged, Ranges, offsets_of, take_bags
from trainer.data.range_copies import SOURCE, copy_bags, copy_ranges, size_of

TYPES = (np.int8, np.uint8, np.int16, np.int32, np.int64, np.float32)


@pytest.fixture(params=["kernel", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(range_copies, "_kernel", lambda name: None)
    elif library_of(SOURCE)[0] is None:
        pytest.skip("no compiler")
    return str(request.param)


@pytest.mark.parametrize("of", TYPES)
def test_bags_are_those_of_take_bags(way: str, of: Any) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(0, 5, 40)
    bags = Jagged(random.integers(0, 100, lengths.sum()).astype(of), offsets_of(lengths))
    for rows in (random.integers(0, 40, 100), np.array([39, 0]), np.empty(0, dtype=np.int64)):
        found, expected = copy_bags(bags, rows), take_bags(bags, rows)
        assert found.values.dtype == of
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.offsets, expected.offsets)


@pytest.mark.parametrize("of", [np.int16, np.int32, np.int64])
@pytest.mark.parametrize("bounds", [np.int32, np.int64])
def test_ranges_are_written_as_64_bits(way: str, of: Any, bounds: Any) -> None:
    values = np.array([-3, 1, 4, 1, 5, 9, 2, 6]).astype(of)
    start, stop = np.array([2, 0, 5, 7, 1]), np.array([6, 1, 5, 8, 4])
    ranges = Ranges(values, start.astype(bounds), stop.astype(bounds))
    out = np.empty(size_of(ranges), dtype=np.int64)
    copy_ranges(ranges, out)
    assert out.tolist() == [4, 1, 5, 9, -3, 6, 1, 4, 1]
