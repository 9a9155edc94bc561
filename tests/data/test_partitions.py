"""Rows of a partition: sorts by several keys, and what travels with an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.events.event_files import Events, joined_events
from trainer.data.schema import DISLIKED, LIKED
from trainer.prepare.partitions.event_windows import EARLIER, each_window
from trainer.prepare.partitions.kept_rows import groups_of, keep_rows, one_a_pair
from trainer.prepare.partitions.partition_plan import PartitionPlan
from trainer.prepare.partitions.sorting import begins_of, order_by
from trainer.prepare.partitions.splits import Hashes, SplitRule
from trainer.prepare.partitions.staged_rows import UNKNOWN, read_staged
from trainer.sources import sql

WIDE = np.iinfo(np.int64)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 1)],
        [(0, 3), (-4, 4)],
        [(0, 5), (WIDE.min, WIDE.max)],
        [(WIDE.min, WIDE.max), (WIDE.min, WIDE.max), (0, 2)],
        [(-3, 3), (7, 8), (0, 1 << 40), (0, 9)],
    ],
)
def test_order_is_that_of_lexsort(seed: int, ranges: list[tuple[int, int]]) -> None:
    random = np.random.default_rng(seed)
    rows = int(random.choice([0, 1, 2, 3, 64, 65, 1000]))
    keys = [
        # Few values, so that rows tie; the widest ones among them.
        random.choice(random.integers(*span, 5, endpoint=span[1] == WIDE.max), rows)
        for span in ranges
    ]
    order = order_by(*keys)
    np.testing.assert_array_equal(order, np.lexsort(keys[::-1]))
    sorted_keys = [key[order] for key in keys]
    changes = [n for n in range(rows) if n == 0 or any(k[n] != k[n - 1] for k in sorted_keys)]
    assert np.flatnonzero(begins_of(*sorted_keys)).tolist() == changes


def test_unsigned_numbers_narrow_ones_and_marks_are_sorted() -> None:
    """Hashes have all 64 bits; what is given or old is a mark of a few."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 1 << 64, 500, dtype=np.uint64)
    marks, small = random.random(500) < 0.5, random.integers(-128, 127, 500).astype(np.int8)
    for keys in ((marks, hashes), (small, marks, hashes), (hashes, small)):
        np.testing.assert_array_equal(order_by(*keys), np.lexsort(keys[::-1]))


KINDS = (LIKED, DISLIKED)


def stage(folder: Path, seed: int, rows: int = 400) -> dict[str, Any]:
    """A partition's rows in two files, each with what tells it from all others."""
    random = np.random.default_rng(seed)
    columns = {
        "user": random.integers(5, 25, rows),
        "item": random.integers(0, 30, rows),
        "kind": random.integers(-1, 2, rows).astype(np.int8),
        "moment": random.integers(0, 50, rows),
        "position": random.permutation(rows),
        "given": pa.array([None] * rows, pa.int8()),
        "old": pa.array([None] * rows, pa.int8()),
        "weight": random.random(rows).astype(np.float32),
    }
    table = pa.table(columns)
    (folder / "rows/part=0").mkdir(parents=True)
    half = rows // 2
    for name, part in (("new_0", table.slice(0, half)), ("new_1", table.slice(half))):
        pq.write_table(part, folder / f"rows/part=0/{name}.parquet")
    return columns


def plan_of(folder: Path, timed: bool, starts: tuple[int, ...]) -> PartitionPlan:
    rule = SplitRule("random", 0.2, 0.2, 1)
    return PartitionPlan(
        str(folder),
        str(folder),
        1,
        30,
        30,
        rule,
        4,
        timed,
        (LIKED, DISLIKED),
        "last",
        starts=starts,
    )


@pytest.mark.parametrize("timed, starts", [(True, ()), (True, (0, 20, 40)), (False, ())])
def test_further_columns_stay_with_their_rows(
    tmp_path: Path, timed: bool, starts: tuple[int, ...]
) -> None:
    staged = stage(tmp_path, 3)
    rows = read_staged(str(tmp_path), 0)
    assert set(rows.more) == {"weight"} and (rows.given_E == UNKNOWN).all()
    with sql.in_memory(1) as connection:
        kept = keep_rows(Hashes(connection), plan_of(tmp_path, timed, starts), 0)
    events = kept.events
    assert kept.duplicates and kept.neutral
    assert len(events.user_E) + kept.duplicates + kept.neutral == 400
    of = {weight: n for n, weight in enumerate(staged["weight"].tolist())}
    places = [of[weight] for weight in events.more["weight"].tolist()]
    assert staged["user"][places].tolist() == events.user_E.tolist()
    assert staged["item"][places].tolist() == events.item_E.tolist()
    assert (events.time_E is None) is not timed
    if events.time_E is not None:
        assert staged["moment"][places].tolist() == events.time_E.tolist()


def test_the_last_row_of_a_pair_stays_or_the_first(tmp_path: Path) -> None:
    columns = stage(tmp_path, 4)
    times = list(zip(columns["moment"], columns["position"], strict=True))
    for keep, chosen in (("first", min), ("last", max)):
        expected: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for n, pair in enumerate(zip(columns["user"], columns["item"], strict=True)):
            expected.setdefault(pair, []).append(times[n])
        rows, places = one_a_pair(
            read_staged(str(tmp_path), 0), groups_of((LIKED, DISLIKED)), keep, ()
        )
        found = rows.take(places)
        assert len(places) == len(expected) < 400
        for user, item, *time in zip(
            found.user_E, found.item_E, found.moment_E, found.position_E, strict=True
        ):
            assert tuple(time) == chosen(expected[user, item])


def test_windows_carry_further_columns() -> None:
    """Of any type and shape, by window, and joined again."""
    user = np.repeat([1, 2], 6)
    window = np.tile([EARLIER, 0, 0, 1, 1, 2], 2)
    none = np.zeros(12, dtype=np.int8)
    number = np.arange(12)
    vector = np.stack([number, -number], axis=1).astype(np.float16)
    events = Events(user, number, none, none, number, more={"word": number * 7, "vector": vector})
    for _, own in each_window(events, window, 3, np.array([False]), 2):
        assert own.carried_E is not None and own.carried_E.sum() in (2, 4)
        for some in (own, joined_events([own, own.take(slice(0, 3))])):
            assert (some.more["word"] == some.item_E * 7).all()
            assert some.more["vector"].dtype == np.float16
            assert (some.more["vector"] == vector[some.item_E]).all()
