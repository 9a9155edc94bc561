"""The one place where words reach a terminal: as they are, never as markup or escape sequences.

Titles, ids, paths and column names are other people's words. `[red]`, `:heart:` and `[/x]` are
printed as they stand; control characters and those that turn the direction of text are shown
escaped (`\\x1b`), so that no title can clear the screen or write to the clipboard. No word is cut:
a table is as wide as its longest words, whatever the window; where nobody has set a width (a pipe,
a file), as wide as its cells.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING, Literal, TextIO

from trainer.base.terminal.first_word import clear_loading_line
from trainer.base.terminal.pasted import pasted

if TYPE_CHECKING:  # rich is imported by what draws alone: a line of help waits for none of it
    from rich.console import Console

Style = Literal["", "dim", "bold", "bold red"]

DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They show `gpj.exe` as `exe.jpg`."""
SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
LABEL = re.compile(r"\S{1,9}:")
GAP = 2
"""Blanks between columns that no lines part."""
LONGEST_WHOLE = 20
"""Columns of the screen of a cell that is kept in one line."""


def shown(words: object, keep: str = "") -> str:
    """`str(words)` with control characters, line ends among them, escaped; all but `keep`."""
    return "".join(
        character if character in keep or not _is_control(character) else _escape(character)
        for character in str(words)
    )


def _is_control(character: str) -> bool:
    # Cc: control characters; Cs: halves of a surrogate pair, which no stream encodes; Zl, Zp: line
    # and paragraph separators.
    if character.isascii():
        return not character.isprintable()
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") or character in DIRECTION_MARKS


def _escape(character: str) -> str:
    if character in SHORT:
        return SHORT[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def say(*words: object, command: Sequence[str] = (), file: TextIO | None = None) -> None:
    """Print a line of words, blanks between them, on standard output or `file`.

    On a terminal what is longer than a line goes on in the next with a whole word.

    command: words of a command that ends the line, quoted as a shell takes them. One that is too
        long for the terminal goes on behind backslashes, so that it can be pasted.
    """
    clear_loading_line()
    stream, text = file or sys.stdout, " ".join(shown(each) for each in words)
    width = window_width(stream) if stream.isatty() else None
    if command:
        text = pasted(text, [shown(each) for each in command], width)
    elif width is not None:
        text = wrapped(text, width)
    print(text, file=stream, flush=True)


def wrapped(text: str, width: int) -> str:
    """A line in lines of at most `width` columns, broken between words alone.

    A label ("error:") is not left alone before a word that is too long: the terminal folds that,
    and what follows goes on in its last row.
    """
    from rich.cells import cell_len

    line, *words = text.split(" ")
    lines: list[str] = []
    for word in words:
        used = cell_len(line)
        room = width - 1 - (used if used <= width else (used - 1) % width + 1)
        is_label = not lines and LABEL.fullmatch(line) is not None
        if line.strip() and cell_len(word) > room and not is_label:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}"
    return "\n".join([*lines, line])


@contextmanager
def words_escaped(words: Iterable[str]) -> Iterator[None]:
    """What the body prints on standard error of these words, control characters escaped.

    For a parser of flags, which repeats what it refuses. Its colours are kept where no word has
    such characters.
    """
    if all(shown(word) == word for word in words):
        yield
        return
    held = StringIO()
    try:
        with redirect_stderr(held):
            yield
    finally:
        if held.getvalue():
            clear_loading_line()
            sys.stderr.write(shown(held.getvalue(), keep="\n"))


def plain_console(file: TextIO | None = None, width: int | None = None) -> Console:
    """A console that takes no markup; what is printed on it goes through `shown` first.

    In a notebook it writes to the stream, too, in place of an output of rich's own for each line.
    """
    from rich.console import Console

    clear_loading_line()
    return Console(
        file=file or sys.stdout,
        markup=False,
        emoji=False,
        highlight=False,
        width=width,
        force_jupyter=False,
    )


class Sheet:
    """A table of words.

    Args:
        headings: of the columns; those in `numbers` stand at the right.
        title: a line above the table.
        framed: draw lines and headings; else columns alone.
        whole: columns whose cells stay in one line, but for long ones.
    """

    def __init__(
        self,
        *headings: str,
        numbers: Sequence[str] = (),
        title: str = "",
        framed: bool = True,
        whole: Sequence[str] = (),
    ) -> None:
        self.title, self.framed = title, framed
        self.headings = [shown(heading) for heading in headings]
        self._at_right = [heading in numbers for heading in headings]
        self._whole = [heading in whole for heading in headings]
        self._rows: list[tuple[list[str], Style, bool]] = []

    def add(self, *cells: object, style: Style = "", ends_section: bool = False) -> None:
        """A row; cells that are missing are empty."""
        given = [shown(cell) for cell in cells]
        padded = given + [""] * (len(self.headings) - len(given))
        self._rows.append((padded, style, ends_section))

    def width(self) -> int:
        """Columns of the screen that it takes where no cell is wrapped."""
        from rich.cells import cell_len

        return self._around() + sum(self._widths(cell_len))

    def print(self, file: TextIO | None = None) -> None:
        """Print it as wide as the window allows, or as its longest words need."""
        from rich import box
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        window, widths = window_width(file), self._widths(cell_len)
        if window is not None:
            least = [
                max(word, whole) if kept else word
                for word, whole, kept in zip(
                    self._widths(_longest_word), self._widths(_short_cell), self._whole, strict=True
                )
            ]
            widths = _fitted(least, widths, window - self._around())
        table = Table(
            box=box.HEAVY_HEAD if self.framed else None,
            show_header=self.framed,
            pad_edge=self.framed,
            padding=(0, 1) if self.framed else (0, GAP, 0, 0),
        )
        for heading, at_right, width in zip(self.headings, self._at_right, widths, strict=True):
            justify: Literal["left", "right"] = "right" if at_right else "left"
            table.add_column(Text(heading), justify=justify, width=width, overflow="fold")
        for cells, style, ends_section in self._rows:
            row = (Text(cell) for cell in cells)
            table.add_row(*row, style=style, end_section=ends_section)
        if self.title:
            say(self.title, file=file)
        console = plain_console(file, self._around() + sum(widths))
        if console.is_terminal:
            console.print(table, crop=False)
            return
        with console.capture() as captured:
            console.print(table, crop=False)
        for line in captured.get().splitlines():  # a file needs no blanks that fill a column
            print(line.rstrip(), file=console.file)

    def _widths(self, measure: Callable[[str], int]) -> list[int]:
        """The largest of each column."""
        lines = [cells for cells, _, _ in self._rows]
        lines += [self.headings] if self.framed else []
        return [
            max((measure(line[place]) for line in lines), default=1) or 1
            for place in range(len(self.headings))
        ]

    def _around(self) -> int:
        """Columns of the screen beside the cells: blanks and lines."""
        count = len(self.headings)
        return 3 * count + 1 if self.framed else GAP * (count - 1)


def window_width(file: TextIO | None = None) -> int | None:
    """Columns of the window behind a stream; None for a pipe or a file, unless COLUMNS is set."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    stream = file or sys.stdout
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


def _longest_word(cell: str) -> int:
    from rich.cells import cell_len

    return max((cell_len(word) for word in cell.split()), default=0)


def _short_cell(cell: str) -> int:
    """The width of a cell that is not to be broken."""
    from rich.cells import cell_len

    width = cell_len(cell)
    return width if width <= LONGEST_WHOLE else 0


def _fitted(least: list[int], most: list[int], room: int) -> list[int]:
    """Widths between `least` and `most` that take the room; the modest ones get theirs first."""
    widths, spare = list(least), max(room - sum(least), 0)
    waiting = sorted(range(len(least)), key=lambda place: most[place] - least[place])
    for number, place in enumerate(waiting):
        more = min(most[place] - least[place], spare // (len(waiting) - number))
        widths[place] += more
        spare -= more
    return widths
