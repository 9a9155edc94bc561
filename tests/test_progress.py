"""Plain lines where there is no terminal, one live line where there is one."""

import io
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.terminal import seen
from trainer.observe.progress import (
    TerminalProgress,
    format_seconds,
    format_value,
    in_words,
    quiet_libraries,
)
from trainer.observe.waiting import waits

PATH = {"PYTHONPATH": str(Path(__file__).parents[1])}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_every_few_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = TerminalProgress(stream, every_seconds=10, clock=clock)
    for step in range(0, 101, 10):
        progress.update("training", step, 100, loss=4.0 - step / 100, rows_per_second=21407.2)
        clock.now += 3.0
    lines = stream.getvalue().splitlines()
    # Seconds 0, 12, 24 and the last: steps 0, 40, 80, 100. At 80 of 100, 24 s for 80 steps: 6 s.
    assert [line.split()[1] for line in lines] == ["0/100", "40/100", "80/100", "100/100"]
    assert lines[2] == "training  80/100  loss 3.2  21,407 rows/s  eta 0:00:06"


def test_time_left_is_reckoned_from_where_a_restarted_run_goes_on() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = TerminalProgress(stream, every_seconds=0, clock=clock)
    for now, step in ((0, 10), (10, 60), (100, 50), (110, 60)):
        clock.now = float(now)
        progress.update("training", step, 100)
    # From step 50 on: 10 steps in 10 s, so 40 s for the 40 left; the 90 s of restart do not count.
    assert stream.getvalue().splitlines()[-1] == "training  60/100  eta 0:00:40"


def test_unknown_totals_and_markup_in_messages_are_printed_as_they_are() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        progress.update("reading", 12_345)
        progress.message("wrote [bold]step-1[/bold]")
    assert stream.getvalue().splitlines() == ["reading  12,345", "wrote [bold]step-1[/bold]"]


def test_a_terminal_gets_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with TerminalProgress(stream) as progress:
        for step in (1, 2, 3):
            progress.update("training", step, 3, loss=1.5)
    text = stream.getvalue()
    assert "training" in text
    assert "loss 1.5" in text
    assert text.count("\n") <= 2


def test_values_are_formatted_by_name() -> None:
    assert format_value("loss", 4.31849) == "loss 4.318"
    assert format_value("rows", 146464) == "rows 146,464"
    assert format_value("rows_per_second", 21407.2) == "21,407 rows/s"
    assert format_seconds(3 * 3600 + 62) == "3:01:02"
    spoken = [in_words(seconds) for seconds in (3.6, 59.6, 110, 7_500)]
    assert spoken == ["4 s", "1 min 0 s", "1 min 50 s", "2 h 5 min"]


def test_libraries_are_quiet_unless_verbose() -> None:
    code = (
        "import sys, os, logging; from trainer.observe.progress import quiet_libraries;"
        "quiet_libraries(verbose=len(sys.argv) > 1);"
        "print(logging.getLogger('torchrec').level, os.environ.get('TORCH_CPP_LOG_LEVEL'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_CPP_LOG_LEVEL"}
    run = [sys.executable, "-c", code]
    quiet = subprocess.check_output(run, text=True, env=environment)
    verbose = subprocess.check_output([*run, "-v"], text=True, env=environment)
    assert quiet.split() == [str(logging.ERROR), "ERROR"]
    assert verbose.split() == ["0", "None"]
    quiet_libraries(verbose=True)


def test_a_wait_is_told_when_it_begins_and_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = TerminalProgress(stream, every_seconds=10, clock=clock)
    for second in range(26):
        clock.now = float(second)
        progress.waiting("starting 2 workers", second)
    progress.waiting(None)
    progress.waiting("starting Ray", 0)
    assert stream.getvalue().splitlines() == [
        "starting 2 workers",
        "starting 2 workers  10 s",
        "starting 2 workers  20 s",
        "starting Ray",
    ]


@pytest.mark.parametrize("columns", [80, 160])
def test_a_wait_leaves_nothing_on_a_terminal(columns: int, tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from trainer.observe.progress import TerminalProgress\n"
        "from trainer.observe.waiting import waits\n"
        "with TerminalProgress() as progress:\n"
        "    with waits(progress, 'starting 2 workers'): time.sleep(1.4)\n"
        "    progress.message('here they are')\n"
        "    with waits(progress, lambda: 'tried 0 of 4'): progress.message('one was tried')\n"
        "    progress.update('training', 1, 1)\n"
        "print('over')\n"
    )
    text = seen([sys.executable, "-c", code], columns, tmp_path, PATH)
    assert any("starting 2 workers" in each and "1 s" in each for each in text)
    last = text[-1].splitlines()
    assert last[:2] == ["here they are", "one was tried"]
    assert last[2].startswith("training") and last[3:] == ["over"]


def test_a_wait_goes_on_where_a_thread_is_busy() -> None:
    stream = io.StringIO()
    with waits(TerminalProgress(stream, every_seconds=0.01), "loading", every_seconds=0.02):
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "loading" and len(lines) > 3
