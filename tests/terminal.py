"""A terminal of so many columns, and what stands on it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte

from docs.site.terminal import ROWS, output_of


def seen(
    command: Sequence[str], columns: int, folder: Path, environment: Mapping[str, str] | None = None
) -> list[str]:
    """The screen after each piece that a command wrote, without what is blank at its end."""
    screen = pyte.Screen(columns, ROWS)
    stream, screens = pyte.ByteStream(screen), []
    for piece in output_of(command, columns, folder, environment or {}):
        stream.feed(piece)
        screens.append("\n".join(line.rstrip() for line in screen.display).rstrip())
    return screens
