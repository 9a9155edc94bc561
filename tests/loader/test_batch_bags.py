"""Batches by the kernel are those of numpy: every key, piece and type, padding and extra items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from losses.kernels.native import library_of
from trainer.data.jagged import Column, Jagged, Ranges, offsets_of
from trainer.data.schema import Dataset
from trainer.loader import assemble
from trainer.loader.batch_bags import SOURCE, addresses_of, bags_of
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
def test_pieces_of_windows(of: Any) -> None:
    keys = ("one", "bags", "ranges")
    windows = [window(0, of), window(1, np.int64), window(2, of)]
    cuts = [(2, 3), (0, 9), (5, 0)]
    rows = np.tile([count for _, count in cuts], (3, 1))
    rows[1, 1] = 0  # a key without rows of a piece
    pieces = [(addresses_of(w, keys), first) for w, (first, _) in zip(windows, cuts, strict=True)]
    made = bags_of(pieces, rows, 14)
    assert made is not None
    values, lengths, sizes = made
    expected = [
        [
            row
            for w, (first, _), count in zip(windows, cuts, rows[number], strict=True)
            for row in rows_of(w[key])[first : first + count]
        ]
        for number, key in enumerate(keys)
    ]
    assert values.tolist() == [value for key in expected for row in key for value in row]
    for found, wanted in zip(lengths.tolist(), expected, strict=True):
        assert found == [len(row) for row in wanted] + [0] * (14 - len(wanted))
    assert sizes.tolist() == [sum(map(len, key)) for key in expected]


def test_what_the_kernel_cannot_read_is_left_to_numpy() -> None:
    assert addresses_of({"a": np.zeros(3, dtype=np.float32)}, ("a",)) is None
    assert addresses_of({"a": np.zeros(6, dtype=np.int64)[::2]}, ("a",)) is None
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
    calls = []
    monkeypatch.setattr(assemble, "bags_of", lambda *others: calls.append(others))
    slow = batches()
    assert len(calls) == len(slow) == len(fast) > 3
    for one, other in zip(fast, slow, strict=True):
        for name in ("values", "lengths", "offset_per_key", "length_per_key"):
            a, b = (getattr(each.features, name)() for each in (one, other))
            assert np.array_equal(a, b), name
