"""Flags that make no sense, and what DuckDB cannot do: one line, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from cluster.cli import main
from tests.data.planted import make, some_rows, write_csv
from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.synth.synth import SynthArguments

SMALL = {"users": 60, "items": 40, "interactions": 500}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "rows.csv", some_rows())


def words(told: str) -> str:
    """A message of the parser's, without its box."""
    return " ".join(told.replace("│", " ").split())


class TestErrors:
    """DuckDB's errors, as a person reads them."""

    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (
                duckdb.IOException('IO Error: Could not write file "x": No space left on device'),
                Mistake,
                r"^doing: the disk is full \(Could not write .*make room .*--scratch$",
            ),
            (
                duckdb.IOException(
                    "IO Error: Async write failed for range [offset=0, size=2]: "
                    '{"exception_type":"IO","exception_message":"Could not write file '
                    '\\"/x y\\": No space left on device","errno":"28"}'
                ),
                Mistake,
                r'the disk is full \(Could not write file "/x y": No space left on device\)',
            ),
            (
                duckdb.OutOfMemoryException(
                    "Out of Memory Error: failed to offload data block of size 96.0 KiB\n"
                    "This limit was set by the 'max_temp_directory_size' setting."
                ),
                Mistake,
                r"^doing: the disk is full \(failed to offload",
            ),
            (
                duckdb.OutOfMemoryException("Out of Memory Error: could not allocate\nmore"),
                Mistake,
                r"^doing: memory does not suffice \(could not allocate\): raise --memory-limit",
            ),
            (duckdb.BinderException("Binder Error: no x\n\nLINE 1"), RuntimeError, "^doing: no x$"),
            (RuntimeError("Query interrupted"), KeyboardInterrupt, "^$"),
            (RuntimeError("other"), RuntimeError, "^other$"),
        ],
    )
    def test_one_line(self, error: Exception, kind: type[BaseException], message: str) -> None:
        with pytest.raises(kind, match=message) as told, sql.faults("doing"):
            raise error
        assert "\n" not in str(told.value)

    def test_too_little_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Told with the remedy, in prepare and in a task alike."""

        def fails(*others: Any) -> None:
            raise duckdb.OutOfMemoryException("Out of Memory Error: could not allocate")

        source = write_csv(tmp_path / "rows.csv", some_rows())
        for name in (
            "trainer.prepare.partitions.partition.keep_rows",
            "trainer.prepare.steps.stage_rows",
        ):
            with monkeypatch.context() as patch:
                patch.setattr(name, fails)
                with pytest.raises(Mistake, match=r"memory does not suffice.*--memory-limit"):
                    make(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--memory-limit=-4GB"], "--memory-limit '-4GB' is no size"),
            (["--memory-limit", "1.2.3GB"], "is no size"),
            (["--memory-limit", "nanGB"], "is no size"),
            (["--memory-limit", "1KB"], "must be from 64MB"),
            (["--memory-limit", "99999999TB"], "must be from 64MB"),
            (["--threads", "100000"], "--threads 100000 must be from 1 to 1,024"),
            (["--threads", "0"], "must be from 1 to 1,024"),
            (["--positive-threshold", "nan"], "--positive-threshold nan must be a number"),
            (["--dislike-threshold=-inf"], "--dislike-threshold -inf must be a number"),
            (["--test-share", "nan"], "--test-share nan must lie between 0 and 1"),
            (["--seed", str(10**30)], "must be an integer of 64 bits"),
            (["--history-length", str(10**9)], "--history-length 1000000000 must be from 0"),
        ],
    )
    def test_absurd_flags(
        self, source: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
    ) -> None:
        with pytest.raises(SystemExit) as end:
            main(["prepare", str(source), str(source.parent / "out"), *flags])
        assert end.value.code == 2 and message in words(capsys.readouterr().err)
        assert not (source.parent / "out").exists()

    @pytest.mark.parametrize("place", [0, 1])
    def test_empty_paths(
        self, source: Path, capsys: pytest.CaptureFixture[str], place: int
    ) -> None:
        paths = [str(source), str(source.parent / "out")]
        paths[place] = ""
        with pytest.raises(SystemExit):
            main(["prepare", *paths])
        assert f"{('SOURCE', 'OUT')[place]} is empty" in words(capsys.readouterr().err)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"items": 10**12}, "--items 1000000000000 must be at most 2,147,483,647"),
            ({"users": 10**13, "interactions": 10**14}, "--users .* at most"),
            ({"seed": -1}, "--seed -1 must be at least 0"),
            ({"zipf_exponent": float("nan")}, "--zipf-exponent nan must be at most"),
            ({"zipf_exponent": float("inf")}, "--zipf-exponent inf must be at most 10"),
            ({"threads": 100_000}, "--threads 100000 must be at most 1,024"),
            ({"history_length": 10**6}, "--history-length 1000000 must be at most 10,000"),
            ({"noise": float("nan")}, "--noise nan must be from 0"),
            ({"out": ""}, "OUT is empty"),
        ],
    )
    def test_absurd_synth(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(Mistake, match=message):
            SynthArguments(**{"out": "x", **SMALL, **arguments})
