"""However a command ends: one line, and the right exit status."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainer import train
from trainer.base import byte_sizes
from trainer.base.ending import guarded
from trainer.base.mistake import Mistake, MistakeOfAll, UsageError
from trainer.base.screen import say
from trainer.base.stopping import Terminated
from trainer.watch.finite import NonFiniteError

DOING = "tandem export RUN OUT"
BUG = "this is a bug of Tandem"


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def calling(function: Callable[..., object], *arguments: object) -> Callable[[], int]:
    def command() -> int:
        function(*arguments)
        return 0

    return command


def line_of(command: Callable[[], int], capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    assert guarded(command, DOING, verbose=False) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    return err


def nested() -> object:
    return json.loads("[" * 200_000)


def no_memory() -> None:
    np.empty(1 << 60, np.int8)


FOREIGN = {
    "duckdb": (calling(duckdb.sql, "SELECT * FROM read_parquet('/none/*.parquet')"), "No files"),
    "duckdb conversion": (calling(lambda: duckdb.sql("SELECT 'x'::INT").fetchall()), "'x'"),
    "pyarrow": (calling(pq.read_table, Path(__file__)), "Parquet magic bytes"),
    "full disk": (raising(OSError(errno.ENOSPC, "No space left", "/o/f")), "free some space"),
    "rights": (raising(PermissionError(errno.EACCES, "Permission denied", "/o/f")), "/o/f"),
    "read-only": (raising(OSError(errno.EROFS, "Read-only file system", "/o")), "/o"),
    "folder": (calling(Path(__file__).parent.read_text), str(Path(__file__).parent)),
    "no errno": (raising(OSError("half\nmany more lines")), "half"),
    "reset": (raising(ConnectionResetError(104, "Connection reset by peer")), "reset by peer"),
    "memory": (calling(no_memory), "memory does not suffice"),
    "memory of torch": (calling(torch.empty, 1 << 60), "memory does not suffice"),
    "bare memory": (raising(MemoryError()), "memory does not suffice"),
    "import": (raising(ModuleNotFoundError("No module named 'triton'")), "tandem doctor"),
}
UNEXPECTED = {
    "key": (raising(KeyError("files")), "KeyError: 'files'"),
    "overflow": (calling(pa.array, [1 << 80], pa.int64()), "OverflowError"),
    "recursion": (calling(nested), "RecursionError"),
    "value": (calling(int, "x"), "ValueError: invalid literal"),
    "unicode": (calling(b"\xe9".decode), "UnicodeDecodeError"),
    "assertion": (raising(AssertionError()), "AssertionError"),
    "torch": (calling(torch.zeros(3).reshape, 2, 2), "RuntimeError: shape '[2, 2]' is invalid"),
    "several": (raising(ExceptionGroup("two", [ValueError("a")])), "ExceptionGroup"),
    "lines": (raising(RuntimeError("first\nsecond\n\x1b[2J")), "RuntimeError: first ("),
    "ours": (calling(byte_sizes.bytes_of, None, "--size"), "(byte_sizes.py:"),
    "blank": (raising(RuntimeError("\n\n-- Process 1 ended:\nmore")), "-- Process 1 ended:"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_the_world_does_names_what_was_being_done(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, words = FOREIGN[case]
    line = line_of(command, capsys)
    assert line.startswith(f"error: {DOING}: ")
    assert words in line and BUG not in line and "many more" not in line


@pytest.mark.parametrize("case", UNEXPECTED)
def test_what_nobody_foresaw_is_called_a_bug(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, words = UNEXPECTED[case]
    line = line_of(command, capsys)
    assert line.startswith(f"error: {DOING}: ")
    assert words in line and BUG in line and "--verbose" in line
    assert re.search(r" \(\w+\.\w+:\d+\); ", line)
    assert guarded(command, DOING, verbose=True) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "\x1b" not in err


def test_what_tandem_says_itself_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(raising(Mistake("--k 0: at least 1")), capsys) == "error: --k 0: at least 1\n"
    assert line_of(raising(UsageError("which?")), capsys, status=2) == "error: which?\n"
    assert line_of(raising(NonFiniteError("loss is nan")), capsys) == "error: loss is nan\n"
    assert line_of(raising(Mistake("no a\nb\x1b[2J")), capsys) == "error: no a\\nb\\x1b[2J\n"
    assert guarded(raising(Mistake("x")), DOING, verbose=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ends_by_signals(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(KeyboardInterrupt()), DOING, verbose=False) == 130
    assert guarded(raising(Terminated("ended by SIGTERM", 143)), DOING, verbose=False) == 143
    assert capsys.readouterr().err == "stopped\nended by SIGTERM\n"


def test_what_all_ranks_raise_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's processes share a terminal."""
    said = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        for error in (MistakeOfAll("no data"), Terminated("ended", 143), Mistake(f"own of {rank}")):
            guarded(raising(error), DOING, verbose=False)
        said += capsys.readouterr().err.splitlines()
    assert said == ["error: no data", "ended", *(f"error: own of {rank}" for rank in range(3))]


def test_wrong_flags_are_told_by_the_first_rank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, tells in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        for wrong in (["demo", "--data", "d", "--out", "o", "--slit", "x"], ["dmo"]):
            with pytest.raises((SystemExit, Mistake)) as raised:
                train.main(wrong)
            told = capsys.readouterr()
            shown = bool(told.err) or not isinstance(raised.value, SystemExit | MistakeOfAll)
            assert shown is tells


def test_errors_of_libraries_that_are_not_imported_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ray and botocore are known by the names of their packages."""
    kind = type("NoCredentialsError", (Exception,), {"__module__": "botocore.exceptions"})
    line = line_of(raising(kind("Unable to locate credentials")), capsys)
    assert line == f"error: {DOING}: NoCredentialsError: Unable to locate credentials\n"
    wrapped = type("RayTaskError", (Exception,), {"__module__": "ray.exceptions"})
    error = wrapped("ray::run() (pid=1)\nTraceback ...")
    error.cause = Mistake("--data x: no such folder")
    assert line_of(raising(error), capsys) == "error: --data x: no such folder\n"


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("doctor", "--help")])
def test_a_reader_that_has_seen_enough_ends_it_quietly(arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_connection_is_no_broken_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    error = BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert "Broken pipe" in line_of(raising(error), capsys)


def test_a_terminal_that_knows_ascii_alone_shows_the_rest_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert guarded(lambda: say("Zoë") or 0, DOING, verbose=False) == 0
    assert stream.buffer.getvalue() == b"Zo\\xeb\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed_are_written_to_nobody(closed: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m tandem status {tmp_path}/none {closed}"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ("error: " in ended.stderr) == ("2>" not in closed)
