"""No command is silent on a terminal for long: it says that it loads."""

import os
import pty
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from trainer.base import screen
from trainer.base.screen import say
from trainer.base.terminal import first_word
from trainer.base.terminal.first_word import never_silent


def test_what_loads_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    screen.sys.stderr.isatty = lambda: True  # type: ignore[method-assign]
    with never_silent("tandem serve: loading", seconds=0.02):
        time.sleep(0.3)
    shown = capsys.readouterr().err
    assert shown == "\rtandem serve: loading  0 s\r\x1b[K", "it is gone afterwards"


def test_what_is_printed_stands_in_its_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen.sys.stderr.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(first_word, "REPEATED_SECONDS", 0.05)
    with never_silent("loading", seconds=0.02):
        time.sleep(0.4)
        say("an answer", file=sys.stderr)
        time.sleep(0.2)
    shown = capsys.readouterr().err
    assert shown.count("\rloading  0 s") > 3
    assert shown.endswith("\r\x1b[Kan answer\n")


def test_what_has_spoken_or_is_over_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    screen.sys.stderr.isatty = lambda: True  # type: ignore[method-assign]
    with never_silent("loading", seconds=0.1):
        say("done")
        time.sleep(0.3)
    with never_silent("loading", seconds=0.1):
        pass
    time.sleep(0.2)
    assert capsys.readouterr() == ("done\n", "")


def test_a_pipe_gets_nothing_but_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with never_silent("loading", seconds=0.02):
        time.sleep(0.2)
    assert capsys.readouterr() == ("", "")


def test_a_command_on_a_terminal(tmp_path: Path) -> None:
    """One that imports torch before it can say that its data are not there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tandem", "evaluate", str(tmp_path / "none")]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs):
        os.close(theirs)
        said = b""
        with suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 4096):
                said += piece
    lines = said.decode().rpartition("\x1b[K")[2].split("\r\n")
    assert lines[0].startswith("error:") and lines[-1] == ""  # a long path begins a line
    assert not any(line.startswith("error:") for line in lines[1:])


@pytest.mark.parametrize("flags", [[], ["--training.global-batch-size", "100000"]])
def test_what_is_wrong_with_data_and_flags_is_told_before_torch_is_loaded(
    flags: list[str], tmp_path: Path
) -> None:
    """Loading takes seconds, on a busy machine a minute and a half."""
    if flags:
        make_dataset(tmp_path / "data")
    code = (
        "import sys\n"
        "from cluster.commands.train_run import main\n"
        "from trainer.base.mistake import Mistake\n"
        "try: main(sys.argv[1:], False)\n"
        "except Mistake as mistake: print('torch' in sys.modules, mistake)\n"
    )
    given = ["demo", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *flags]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    words = "is more than the" if flags else "is no prepared dataset"
    assert done.stdout.startswith("False ") and words in done.stdout, done.stderr
    assert done.stderr == "loading torch and Ray\n"
