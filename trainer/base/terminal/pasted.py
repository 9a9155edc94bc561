"""Commands that are shown to be pasted into a shell."""

import shlex
import sys
from collections.abc import Sequence

INDENT = "    "


def pasted(label: str, command: Sequence[str], width: int | None) -> str:
    """A command behind its label, quoted as a shell takes it.

    Longer than `width` columns it goes on in the next line behind a backslash, between words
    alone: a flag with its values, where a line has room for them.
    """
    from rich.cells import cell_len

    before = [label] if label else []
    groups = _with_values([shlex.quote(word) for word in command])
    whole = " ".join([*before, *(word for group in groups for word in group)])
    room = sys.maxsize if width is None else width
    if cell_len(whole) <= room:
        return whole
    room -= len(" \\")
    first, *rest = groups
    lines = [" ".join([*before, *first])]
    for group in rest:
        together = " ".join(group)
        for piece in [together] if cell_len(INDENT + together) <= room else group:
            if cell_len(f"{lines[-1]} {piece}") <= room:
                lines[-1] += f" {piece}"
            else:
                lines.append(INDENT + piece)
    return " \\\n".join(lines)


def _with_values(command: Sequence[str]) -> list[list[str]]:
    """Each flag with what follows it; words before the first flag by themselves."""
    groups: list[list[str]] = []
    for word in command:
        if groups and groups[-1][0].startswith("-") and not word.startswith("-"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups
