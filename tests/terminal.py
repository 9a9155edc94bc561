"""A terminal of so many columns, and what stands on it."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte

ROWS = 200


def seen(
    command: Sequence[str], columns: int, folder: Path, environment: Mapping[str, str] | None = None
) -> list[str]:
    """The screen after each piece that a command wrote, without what is blank at its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    given = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    given |= {"TERM": "xterm-256color", **(environment or {})}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=given, cwd=folder
    )
    os.close(theirs)
    screen = pyte.Screen(columns, ROWS)
    stream, screens = pyte.ByteStream(screen), []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        stream.feed(piece)
        screens.append("\n".join(line.rstrip() for line in screen.display).rstrip())
    os.close(ours)
    process.wait()
    return screens
