"""A command as a terminal shows it, as an SVG: run in a pty, kept by pyte, drawn by rich."""

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

from trainer.base.terminal.pasted import pasted

ROWS = 400
"""Higher than any command prints, so that nothing scrolls away."""
COLOURS = {"default": None, "brown": "yellow", "brightbrown": "bright_yellow"}
HEX = re.compile(r"[0-9a-f]{6}")
FRAME = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px "DejaVu Sans Mono", Menlo, Consolas, monospace; \
line-height: {line_height}px; white-space: pre; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""
"""As rich's, without fonts that would be fetched."""


def recorded(
    command: list[str], columns: int, folder: Path, shown: str, names: dict[str, str]
) -> str:
    """SVG of what a command leaves on a terminal of so many columns, under `shown`.

    names: words of the output -> what is shown in their place.
    """
    screen = pyte.Screen(columns, ROWS)
    stream = pyte.ByteStream(screen)
    typed = pasted("$", shlex.split(shown), columns).replace("\n", "\r\n")
    stream.feed(f"{typed}\r\n".encode())
    output = b"".join(output_of(command, columns, folder, {"PYTHONUNBUFFERED": "1"}))
    for word, name in names.items():
        output = output.replace(word.encode(), name.encode())
    stream.feed(output)
    return drawn(screen, columns, " ".join(shown.split()[:2]))


def output_of(
    command: Sequence[str], columns: int, folder: Path, environment: Mapping[str, str]
) -> list[bytes]:
    """What a command writes to its terminal, piece by piece."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    given = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**given, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    process.wait()
    return pieces


def drawn(screen: pyte.Screen, columns: int, title: str) -> str:
    console = Console(
        record=True, width=columns, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    last = max((row for row in range(ROWS) if screen.display[row].strip()), default=0)
    for row in range(last + 1):
        line = Text(no_wrap=True, overflow="ignore")
        cells = (screen.buffer[row][column] for column in range(columns))
        for style, same in groupby(cells, key=_style):
            line.append("".join(cell.data for cell in same), style)
        line.rstrip()
        console.print(line, crop=False)
    return console.export_svg(title=title, code_format=FRAME, unique_id="t")


def _style(cell: pyte.screens.Char) -> Style:
    colour = COLOURS.get(cell.fg, cell.fg)
    return Style(color=f"#{colour}" if HEX.fullmatch(colour or "") else colour, bold=cell.bold)
