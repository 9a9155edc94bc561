"""`--min-count`: who has a row of tables of its own, by plain definition; appends, trims."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.windows import day_of, events_of, make, make_log, write
from trainer.base.mistake import Mistake
from trainer.data.features import read_table_rows
from trainer.data.schema import Dataset, TableRows
from trainer.prepare.features.shared_rows import OWN_A_ROW, RARE_A_ROW, deal_rows
from trainer.prepare.summary import print_summary
from trainer.prepare.trim import trim

LEAST = {"item": 4, "user": 5}
LOG = make_log(5)


def counted(dataset: Dataset, side: str) -> dict[int, int]:
    """Positives in train by raw id, counted from the events."""
    train = (e for e in events_of(dataset) if e.split == 0 and e.feedback > 0)
    return Counter(getattr(each, side) for each in train)


def rows_by_id(dataset: Dataset, side: str) -> dict[int, int]:
    table = pq.read_table(dataset.file(f"{side}s.parquet"))
    return dict(zip(table["raw_id"].to_pylist(), table["table_row"].to_pylist(), strict=True))


def check(dataset: Dataset, side: str, before: dict[int, int] | None = None) -> set[int]:
    """Rows are by the definition; ids that have their own."""
    rows, count, table = rows_by_id(dataset, side), counted(dataset, side), dataset.table_rows[side]
    had = {each for each, row in (before or {}).items() if row >= table.shared}
    own = had | {each for each in rows if count[each] >= LEAST[side]}
    assert {each for each, row in rows.items() if row >= table.shared} == own
    assert sorted(rows[each] for each in own) == list(range(table.shared, table.shared + len(own)))
    assert table == TableRows(LEAST[side], table.shared, len(own))
    assert dataset.rows_of_table(side) == table.shared + len(own)
    for each, row in (before or {}).items():
        assert rows[each] == row or (each in own and each not in had)
    return own


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """Three days, and the source of the fourth."""
    folder = tmp_path_factory.mktemp("days")
    old = write([row for row in LOG if day_of(row[3]) < 3], folder / "old.parquet")
    new = write([row for row in LOG if day_of(row[3]) >= 3], folder / "new.parquet")
    arguments = {"min_count": LEAST["item"], "min_user_count": LEAST["user"]}
    return make(old, folder / "data", **arguments), new


@pytest.fixture
def copied(days: tuple[Dataset, Path], tmp_path: Path) -> Dataset:
    shutil.copytree(days[0].path, tmp_path / "data")
    return replace(days[0], path=str(tmp_path / "data"))


@pytest.mark.parametrize("side", ["item", "user"])
def test_who_is_met_often_has_a_row_of_its_own(side: str, days: tuple[Dataset, Path]) -> None:
    dataset = days[0]
    own, rows = check(dataset, side), rows_by_id(dataset, side)
    assert 0 < len(own) < len(rows)
    shared = dataset.table_rows[side].shared
    assert shared == max(1, -(-(len(rows) - len(own)) // RARE_A_ROW), -(-len(own) // OWN_A_ROW))
    assert dataset.rows_of_table(side) < len(rows)


@pytest.mark.parametrize("timed", [True, False])
def test_what_is_appended_gives_rows_to_those_that_it_makes_frequent(
    timed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {} if timed else {"timestamp_column": None}
    paths = [tmp_path / "old.parquet", tmp_path / "new.parquet"]
    for path, later in zip(paths, (False, True), strict=True):
        write([row for row in LOG if (day_of(row[3]) >= 3) == later], path)
        if not timed:
            pq.write_table(pq.read_table(path).drop_columns(["time"]), path)
    given: dict[str, Any] = {"min_count": LEAST["item"], "min_user_count": LEAST["user"], **columns}
    old = make(paths[0], tmp_path / "data", **given)
    before = {side: rows_by_id(old, side) for side in LEAST}
    owners = {
        side: {r for r, n in before[side].items() if n >= old.table_rows[side].shared}
        for side in LEAST
    }
    new = make(paths[1], tmp_path / "data", append=True)
    for side in LEAST:
        assert new.table_rows[side].shared == old.table_rows[side].shared
        now = {
            each
            for each, row in rows_by_id(new, side).items()
            if row >= new.table_rows[side].shared
        }
        if timed:
            assert check(new, side, before[side]) == now
        admitted = (now - owners[side]) & before[side].keys()
        assert owners[side] <= now and admitted
        assert new.notes[f"{side}s_with_a_row_of_their_own_now"] == len(admitted)
    print_summary(new, 1.0)
    shown = capsys.readouterr().out
    assert "items with a row of their own now" in shown
    assert f"share {new.table_rows['item'].shared} rows" in shown.replace("\n", " ")


def test_rows_outlive_the_windows_that_gave_them(
    copied: Dataset, days: tuple[Dataset, Path]
) -> None:
    grown = make(days[1], Path(copied.path), append=True)
    before = {side: list(rows_by_id(grown, side).values()) for side in LEAST}
    trimmed = trim(copied.path, np.array([0]), 1)
    assert {side: list(rows_by_id(trimmed, side).values()) for side in LEAST} == before
    assert trimmed.table_rows == grown.table_rows
    Dataset.load(copied.path, verify="digest")


def test_another_count_than_that_of_the_data_is_refused(
    copied: Dataset, days: tuple[Dataset, Path], tmp_path: Path
) -> None:
    for given in ({"min_count": 5}, {"min_user_count": 1}):
        with pytest.raises(Mistake, match="is not the extended dataset's"):
            make(days[1], Path(copied.path), append=True, **given)
    with pytest.raises(Mistake, match="--min-count 0 must be"):
        make(days[1], tmp_path / "new", min_count=0)
    plain = make(days[1], tmp_path / "plain")
    assert (
        not plain.table_rows
        and "table_row" not in pq.read_schema(plain.file("items.parquet")).names
    )
    with pytest.raises(Mistake, match=r"is not the extended dataset's \(None\)"):
        make(days[1], tmp_path / "plain", append=True, min_count=5)


@pytest.mark.parametrize(
    "wrong", [{"item": {"min_count": 4, "shared": 0, "own": 9}}, {"city": {}}, {"item": 3}]
)
def test_a_strangers_rows_of_tables_are_checked(wrong: Any, copied: Dataset) -> None:
    path = Path(copied.path) / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "table_rows": wrong}))
    with pytest.raises(Mistake, match="table_rows"):
        Dataset.load(copied.path)


def test_a_row_of_a_table_stays_within_it(copied: Dataset) -> None:
    table = copied.table_rows["item"]
    fewer = replace(copied, table_rows={"item": replace(table, own=table.own - 1)})
    with pytest.raises(Mistake, match=r"'table_row' holds .*, outside 0\.\."):
        read_table_rows(fewer, "item")


def test_rows_are_dealt_by_count_alone() -> None:
    """Worked by hand: three of five have two rows or more; they come after the shared one."""
    dealt = deal_rows(np.array([2, 0, 9, 1, 2]), None, 2)
    assert dealt.row_N.tolist() == [1, 0, 2, 0, 3] and dealt.admitted == 0
    assert dealt.table == TableRows(2, 1, 3)
    before = np.array([1, 0, 2, 0, 3, -1, -1])
    again = deal_rows(np.array([0, 5, 9, 1, 2, 7, 0]), before, dealt.table)
    assert again.row_N.tolist() == [1, 4, 2, 0, 3, 5, 0] and again.admitted == 1
    assert again.table == TableRows(2, 1, 5)


def test_many_rare_ids_are_spread_over_their_rows() -> None:
    dealt = deal_rows(np.zeros(10_000, dtype=np.int64), None, 1)
    share = np.bincount(dealt.row_N, minlength=dealt.table.shared)
    assert dealt.table.shared == 1000 and 0 < share.max() < 30 and (share > 0).mean() > 0.99
