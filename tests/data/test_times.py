"""Times: what is read, what is beyond, and units that are mixed."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from tests.data.planted import Row, interactions, make, some_rows, write_csv
from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.times import times_of, unit_of

SECONDS = [1_700_000_000 + 60 * n for n in range(40)]


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET threads = 1")
        yield connection


def read(connection: duckdb.DuckDBPyConnection, values: Any) -> list[int | None]:
    """Values of column `timestamp` as prepare reads them."""
    given = pa.table({"timestamp": values})
    connection.register("given", given)
    connection.execute("CREATE OR REPLACE TABLE raw AS FROM given")
    times = times_of(connection, "raw", "column 'timestamp'")
    rows = connection.execute(f"SELECT {times.expression} FROM raw ORDER BY rowid").fetchall()
    return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, 2**63 - 1], pa.uint64()), [1, None, 2**63 - 1]),
        ([1.0, math.nan, 3.0], [1, None, 3]),
        ([2**53 + 1, 5], [2**53 + 1, 5]),
        (["9007199254740993", "", "nan"], [2**53 + 1, None, None]),
        (pa.array([decimal.Decimal("1.25")], pa.decimal128(9, 2)), [1_250_000]),
        (pa.array([decimal.Decimal(7)], pa.decimal128(38, 0)), [7]),
        (pa.array([5, None], pa.timestamp("s")), [5_000_000, None]),
        (pa.array([5_000], pa.timestamp("ns")), [5]),
        (pa.array([5_000], pa.timestamp("ns", "UTC")), [5]),
        (pa.array([5], pa.timestamp("us", "Europe/Berlin")), [5]),
        ([dt.date(1970, 1, 2)], [86_400_000_000]),
        (["1970-01-02", "1970-01-01T00:00:01+01:00"], [86_400_000_000, -3_599_000_000]),
        (pa.array(["1", "2"]).dictionary_encode(), [1, 2]),
        (["02.01.1970", " 1.1.1970 00:01", ""], [86_400_000_000, 60_000_000, None]),
        (["13/01/1970", "01/01/1970 00:00:01"], [12 * 86_400_000_000, 1_000_000]),
        (["1/13/1970", "1/1/1970 1:00 PM"], [12 * 86_400_000_000, 13 * 3_600_000_000]),
    ],
)
def test_read(
    connection: duckdb.DuckDBPyConnection, values: Any, expected: list[int | None]
) -> None:
    assert read(connection, values) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1, 2**63], pa.uint64()), r"beyond int64 in 1 rows.*9223372036854775808.*row 2"),
        ([1e15 + 0.5], "beyond int64 in 1 rows"),
        ([1e300, 1.0], "beyond int64 in 1 rows"),
        (["99999999999999999999", "1"], "beyond int64 in 1 rows"),
        (pa.array([decimal.Decimal(10**30)], pa.decimal128(38, 0)), "beyond int64"),
        ([1.0, math.inf], r"cannot be read as a time in 1 rows, for example 'inf'"),
        (["soon", "1"], r"cannot be read as a time in 1 rows, for example 'soon'"),
        (pa.array([1, -(2**63)], pa.timestamp("us")), r"beyond the years 1 to 9999.*row 2"),
        (pa.array([1, 2**63 - 1], pa.timestamp("us", "UTC")), "beyond the years 1 to 9999"),
        (pa.array([1, 2**31 - 1], pa.date32()), "beyond the years 1 to 9999"),
        (["2024-01-01", "infinity"], "beyond the years 1 to 9999"),
        (pa.array([1], pa.time32("s")), "of type TIME, which is no time"),
        ([True], "of type BOOLEAN, which is no time"),
        ([{"a": 1}], "of type STRUCT"),
        (pa.array([b"\xff"], pa.binary()), "bytes that are not UTF-8"),
    ],
)
def test_refused(connection: duckdb.DuckDBPyConnection, values: Any, message: str) -> None:
    with pytest.raises(Mistake, match=message) as told:
        read(connection, values)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("values", "unit", "units"),
    [
        (SECONDS, "seconds", 1),
        ([1000 * each for each in SECONDS], "milliseconds", 1),
        ([10**6 * each for each in SECONDS], "microseconds", 1),
        ([10**9 * each for each in SECONDS], "nanoseconds", 1),
        ([*SECONDS, *(1000 * each for each in SECONDS)], "seconds", 2),
        ([*SECONDS, 10**6 * SECONDS[0]], "seconds", 2),
        (range(40), None, 0),  # places
        ([19_000 + n for n in range(40)], None, 0),  # days
        ([4 * 10**9 * n for n in range(40)], None, 0),  # microseconds since yesterday
        ([20240101 + n for n in range(40)], None, 0),
        ([None] * 3, None, 0),
        ([], None, 0),
    ],
)
def test_units(
    connection: duckdb.DuckDBPyConnection, values: Any, unit: str | None, units: int
) -> None:
    connection.register("given", pa.table({"moment": pa.array(values, pa.int64())}))
    found, counts = unit_of(connection, "SELECT moment FROM given")
    assert (found, len(counts)) == (unit, units)


class TestUnits:
    """Seconds and milliseconds are put in order by nobody."""

    def rows(self, factor: int, first: int = 0) -> list[Row]:
        return [
            Row(u, 100 + (3 * u + n) % 20, None, factor * (1_700_000_000 + 100 * n + u + first))
            for n in range(12)
            for u in range(8)
        ]

    def test_in_one_source(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        write_csv(tmp_path / "in/a.csv", self.rows(1))
        write_csv(tmp_path / "in/b.csv", self.rows(1000))
        message = (
            r"in: column 'timestamp' mixes units: 96 rows in seconds, 96 rows in milliseconds; "
            r"seconds in .*a\.csv, milliseconds in .*b\.csv.*one unit"
        )
        for split in (None, "time"):
            with pytest.raises(Mistake, match=message):
                make(tmp_path / "in", tmp_path / "out", split=split)

    def test_in_an_extension(self, tmp_path: Path) -> None:
        make(write_csv(tmp_path / "old.csv", self.rows(1)), tmp_path / "old")
        new = write_csv(tmp_path / "new.csv", self.rows(1000, first=5000))
        with pytest.raises(
            Mistake, match=r"new.csv has milliseconds, the extended dataset seconds"
        ):
            make(new, tmp_path / "out", extend=str(tmp_path / "old"))


def test_one_time_for_all_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trainer.prepare.pipeline import PrepareArguments, prepare

    rows = [row._replace(timestamp=7) for row in some_rows()]
    source = write_csv(tmp_path / "rows.csv", rows)
    prepare(PrepareArguments(str(source), str(tmp_path / "out"), memory_limit="256MB", threads=1))
    assert "all 48 rows have the same time (7)" in capsys.readouterr().err


def test_no_time_at_all(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("user,item,timestamp\n" + "".join(f"{n % 5},{n},\n" for n in range(20)))
    with pytest.raises(Mistake, match=r"'timestamp' is empty in all 20 rows: name another column"):
        make(source, tmp_path / "out")


def test_shares_of_time_are_of_rows_that_stay(tmp_path: Path) -> None:
    """Duplicates leave before the moments are chosen: a tenth is a tenth of what is kept."""
    rows = [Row(n % 20, 100 + n // 20, None, n) for n in range(1000)]
    early = [row._replace(timestamp=1000 + n) for n, row in enumerate(rows[:800])]
    made = make(
        write_csv(tmp_path / "rows.csv", rows + early),
        tmp_path / "out",
        split="time",
        test_share=0.1,
        validation_share=0.1,
    )
    assert made.dropped == {"duplicate": 800}
    assert [each.rows for each in made.splits.values()] == [800, 100, 100]
    assert min(row["timestamp"] for row in interactions(made, "test")) == 900


def test_hostile_literals() -> None:
    """Whatever a value is, SQL takes it for that value."""
    texts = ["a", "'", "''", "x'; DROP TABLE t;--", "\\", "\n", "ü💥", "%s", "$1", "?", "{}"]
    values = [*texts, 0, -1, 2**63 - 1, True, False, 1.5, -0.0, 1e308, math.inf, -math.inf, None]
    for value in values:
        (found,) = sql.one(duckdb.connect(), f"SELECT {sql.literal(value)}")
        assert found == value and type(found) is type(value)
    assert math.isnan(sql.one(duckdb.connect(), f"SELECT {sql.literal(math.nan)}")[0])
    with pytest.raises(TypeError):
        sql.literal([1])  # type: ignore[arg-type]
    for name in texts:
        assert sql.columns_of(duckdb.connect(), f"(SELECT 1 AS {sql.name(name)})") == {
            name: "INTEGER"
        }


def test_dates_whose_days_may_be_months_are_refused(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    with pytest.raises(Mistake, match="may be day/month/year or month/day/year: no day is above"):
        read(connection, ["01/02/2025", "03/04/2025"])
