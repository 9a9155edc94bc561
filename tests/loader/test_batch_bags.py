"""Batches by the kernel are those of numpy: every key, piece and type, padding and extra items."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest

from losses.kernels.native import library_of
from trainer.data.jagged import Column, Jagged, Ranges, offsets_of
from trainer.data.schema import Dataset
from trainer.loader import assemble
from trainer.loader.batch_bags import SOURCE, addresses_of, parts_of
from trainer.loader.loader import Loader

needs_compiler = pytest.mark.skipif(library_of(SOURCE)[0] is None, reason="no compiler")


def window(seed: int, of: Any, rows: int = 9) -> dict[str, Column | Ranges]:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 4, rows)
    values = random.integers(0, 100, 30).astype(of)
    start = random.integers(0, 20, rows)
    return {
        "one": random.integers(-5 if np.dtype(of).kind == "i" else 0, 9, rows).astype(of),
        "bags": Jagged(random.integers(0, 99, lengths.sum()).astype(of), offsets_of(lengths)),
        "ranges": Ranges(values, start, start + random.integers(0, 9, rows)),
    }


def rows_of(column: Column | Ranges) -> list[list[int]]:
    if isinstance(column, Ranges):
        bounds = zip(column.start, column.stop, strict=True)
        return [column.values[a:b].tolist() for a, b in bounds]
    if isinstance(column, Jagged):
        bounds = zip(column.offsets[:-1], column.offsets[1:], strict=True)
        return [column.values[a:b].tolist() for a, b in bounds]
    return [[value] for value in column.tolist()]


@needs_compiler
@pytest.mark.parametrize("of", [np.uint8, np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("extra", [0, 4])
def test_pieces_of_windows(of: Any, extra: int) -> None:
    keys = ("one", "bags", "ranges")
    windows = [window(0, of), window(1, np.int64), window(2, of), window(3, np.int32)]
    random = np.random.default_rng(4)
    plain = [
        [random.integers(-1, 9, 9).astype(each) for each in (np.int32, np.int64, of, np.int32)]
        + [random.random(9).astype(np.float32)]
        for _ in windows
    ]
    known = [
        addresses_of(w, keys, [*columns[:4], columns[4].view(np.int32)])
        for w, columns in zip(windows, plain, strict=True)
    ]
    cuts = [(2, 3), (0, 9), (5, 0), (1, extra)]
    pieces = [(each, *cut) for each, cut in zip(known, cuts, strict=True) if each]
    made = parts_of(pieces[:3], pieces[3] if extra else None, keys, 2)
    lengths = made.features.lengths().view(3, -1)
    values = iter(made.features.values().tolist())
    for number, key in enumerate(keys):
        expected = [
            row
            for place, (w, (first, count)) in enumerate(zip(windows, cuts, strict=True))
            if place < 3 or number == 2  # extra candidates have the last key alone
            for row in rows_of(w[key])[first : first + count]
        ]
        expected += [[]] * (12 + extra - len(expected))
        assert lengths[number].tolist() == [len(row) for row in expected]
        assert [next(values) for row in expected for _ in row] == list(chain(*expected))
        assert made.features.length_per_key()[number] == sum(map(len, expected))
    assert next(values, None) is None

    def column(number: int, parts: int) -> np.ndarray:
        here = zip(plain[:parts], cuts, strict=False)
        return np.concatenate([each[number][a : a + count] for each, (a, count) in here])

    for number, found in enumerate((made.user_B, made.item_S, made.count_S)):
        assert found.tolist() == column(number, 3 if number == 0 else 4).tolist()
    assert made.feedback_B.tolist() == column(3, 3).astype(np.int8).tolist()
    assert made.weight_B.tolist() == column(4, 3).tolist()
    assert made.real_rows == (column(0, 3) >= 0).sum()


@needs_compiler
def test_a_column_of_a_table_is_read_where_it_lies() -> None:
    table = np.arange(40, dtype=np.int32).reshape(10, 4)
    bounds = np.array([[0, 2], [1, 1], [5, 8]] * 3, dtype=np.int32)
    columns = {"one": table[:, 1], "ranges": Ranges(table[:, 2].copy(), bounds[:, 0], bounds[:, 1])}
    known = addresses_of(columns, ("one", "ranges"), [table[:, 0]] * 5)
    assert known is not None
    made = parts_of([(known, 1, 3)], None, ("one", "ranges"), 1)
    assert made.user_B.tolist() == [4, 8, 12]
    assert made.features.lengths().tolist() == [1, 1, 1, 0, 3, 2]
    assert made.features.values().tolist() == [5, 9, 13, 22, 26, 30, 2, 6]


@pytest.mark.parametrize("size", [1, 3, 4, 5, 9])
@needs_compiler
def test_bags_at_the_very_end_of_their_values(size: int) -> None:
    """Values are copied some at a time, but never from behind the last."""
    values = np.arange(size, dtype=np.int32)
    columns = {"a": Ranges(values, np.arange(size), np.arange(1, size + 1))}
    known = addresses_of(columns, ("a",), [values] * 5)
    assert known is not None
    made = parts_of([(known, 0, size)], None, ("a",), 1)
    assert made.features.values().tolist() == values.tolist()


def test_what_the_kernel_cannot_read_is_left_to_numpy() -> None:
    none = np.zeros(3, dtype=np.int64)
    assert addresses_of({"a": np.zeros(3, dtype=np.float32)}, ("a",)) is None
    assert addresses_of({"a": Ranges(np.zeros(6)[::2], none, none)}, ("a",)) is None
    assert addresses_of({"a": Ranges(none, none, none.astype(np.int32))}, ("a",)) is None
    assert addresses_of({}, ("a",)) is None, "drawn anew in every step"


@needs_compiler
def test_batches_are_those_of_numpy(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches() -> list[Any]:
        loader = Loader(
            dataset,
            query_keys=("user", "history", "history@1"),
            candidate_keys=("item",),
            local_batch_size=32,
            extra_candidates=5,
            shuffle_window_rows=64,
        )
        return list(loader.epoch(0))

    fast = batches()
    monkeypatch.setattr(assemble, "addresses_of", lambda *others: None)
    slow = batches()
    assert len(slow) == len(fast) > 3
    for one, other in zip(fast, slow, strict=True):
        for name in ("values", "lengths", "offset_per_key", "length_per_key"):
            a, b = (getattr(each.features, name)() for each in (one, other))
            assert np.array_equal(a, b), name
        for name in ("user_B", "item_S", "count_S", "feedback_B", "weight_B"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == b.dtype and a.equal(b), name
        assert one.local_rows == other.local_rows
