"""What prepare tells while it works, and at its end."""

from __future__ import annotations

import time
from pathlib import Path

import duckdb
import pytest

from tests.data.planted import Row, make, write_csv
from trainer.prepare.pipeline import PrepareArguments, prepare
from trainer.sources import statement_watch as watch


class Heard:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, int, int | None]] = []
        self.messages: list[str] = []
        self.closed = False

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        self.updates.append((name, done, total))

    def message(self, text: str) -> None:
        self.messages.append(text)

    def close(self) -> None:
        self.closed = True


def test_phases_and_closing_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row(u, i, 1 + (u + i) % 5, i) for u in range(8) for i in range(20)]
    source = write_csv(tmp_path / "rows.csv", [*rows, rows[0]])
    heard = Heard()
    prepare(PrepareArguments(str(source), str(tmp_path / "out")), heard)
    assert heard.closed
    assert heard.messages[1] == "read 161 rows as csv"
    assert heard.messages[2] == "8 users, 20 items"
    assert ("writing events", 161, 161) in heard.updates
    shown = capsys.readouterr().out
    for text in ("validation", "dropped: duplicate", "dropped: neutral rating", "digest"):
        assert text in shown


def test_statements_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVERY_SECONDS", 0.005)
    heard = Heard()
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar_print = false; SET threads = 1")
    with watch.watched(connection, heard, "reading"):
        for _ in range(20):
            connection.execute(
                "CREATE OR REPLACE TABLE t AS SELECT hash(i) AS h FROM range(2_000_000) AS r(i)"
            )
            if heard.updates:
                break
    assert heard.updates and heard.updates[0][0] == "reading %"
    heard.updates.clear()
    connection.execute("CREATE OR REPLACE TABLE t AS SELECT hash(i) FROM range(1_000_000) AS r(i)")
    time.sleep(0.02)
    assert not heard.updates


def test_failed_runs_leave_nothing(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "rows.csv", [Row(n, n, None, n) for n in range(9)])
    with pytest.raises(ValueError, match="leaves no positive"):
        make(source, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["rows.csv"]
