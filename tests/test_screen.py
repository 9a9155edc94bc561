"""Other people's words on a terminal: as they are, never markup, never escape sequences, whole."""

import ast
import io
import shlex
from pathlib import Path

import pytest

from trainer.base.screen import Sheet, plain_console, say, shown, window_width, wrapped
from trainer.base.terminal.pasted import pasted

ROOT = Path(__file__).parents[1]
CODE = sorted(f for folder in ("cluster", "trainer") for f in (ROOT / folder).rglob("*.py"))
MAY_USE_RICH = {
    "trainer/base/screen.py",
    "trainer/base/terminal/pasted.py",  # how wide a word is
    "trainer/observe/progress.py",
}
MAY_PRINT = {
    "trainer/base/screen.py",
    "cluster/jobs/job_output.py",
    "cluster/jobs/submit.py",
}  # the last two pass a job's own output on
UUID = "0b1e4a57-7b1a-4e0c-9a51-0d5a3f1d9b11"
HOSTILE = (
    "[untitled]",
    "[/encore]",
    ":heart: [red]x",
    "urn:book:i5",
    "\\[b]",
    "\x1b[2J\x1b]52;c;ZXZpbA==\x07",
    "two\nlines\r\t",
    "\u202egpj.exe",
    "\ud800",
    "\x9b31m",
    "日本語 タイトル",
)


def imports_of(tree: ast.AST) -> set[str]:
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return names | {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}


def prints_words(node: ast.AST) -> bool:
    """A `print(...)` of anything but JSON, which escapes by itself."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return False
    text = ast.unparse(node)
    return node.func.id == "print" and "json.dumps(" not in text and ".to_json()" not in text


def test_everything_that_is_shown_goes_through_one_place() -> None:
    by_themselves = []
    for file in CODE:
        name, tree = str(file.relative_to(ROOT)), ast.parse(file.read_text())
        if name not in MAY_USE_RICH:
            rich = {each for each in imports_of(tree) if each.partition(".")[0] == "rich"}
            by_themselves += [f"{name}: {each}" for each in rich]
        if name not in MAY_PRINT:
            prints = [node for node in ast.walk(tree) if prints_words(node)]
            by_themselves += [f"{name}: {ast.unparse(node)}" for node in prints]
    assert not by_themselves, "take Sheet and say of trainer/base/screen.py"


@pytest.mark.parametrize("words", HOSTILE)
@pytest.mark.parametrize("columns", ["", "12", "200"])
def test_words_are_shown_whole_and_as_they_are(
    words: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    sheet = Sheet(words, "score", numbers=("score",), title=words)
    sheet.add(words, words, style="bold")
    sheet.print(stream)
    say("error:", words, file=stream)
    plain_console(stream).print(shown(words), soft_wrap=True)
    text = stream.getvalue()
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert "\u202e" not in text and "…" not in text
    text.encode()
    for word in shown(words).split(" "):
        assert text.count(word) >= 6 or columns == "12"
        assert text.count(word) >= 5


def test_control_characters_are_shown_escaped() -> None:
    assert shown("\x1b[2J\x07\x9b") == "\\x1b[2J\\x07\\x9b"
    assert shown("a\nb\tc\u2028") == "a\\nb\\tc\\u2028"
    assert shown("a\nb", keep="\n") == "a\nb"
    assert shown("Zoë 日本 :-) [x] 👩‍🚀 ‏עברית") == "Zoë 日本 :-) [x] 👩‍🚀 ‏עברית"
    assert shown(12) == "12"


@pytest.mark.parametrize("columns", ["20", "60", "80", "500"])
def test_ids_are_never_cut_nor_folded(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    sheet = Sheet("", "recommended", "recent history")
    for place in range(3):
        sheet.add(str(place), f"A long and winding title ({UUID})", UUID)
    sheet.print(stream)
    assert stream.getvalue().count(UUID) == 6


def test_a_table_takes_the_window_and_a_pipe_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = Sheet("name", "value")
    sheet.add("x " * 100, "1")
    widths = []
    for columns in ("50", "80", ""):
        monkeypatch.setenv("COLUMNS", columns)
        stream = io.StringIO()
        sheet.print(stream)
        widths.append(max(map(len, stream.getvalue().splitlines())))
    assert widths == [50, 80, sheet.width()]
    assert window_width(io.StringIO()) is None


@pytest.mark.parametrize("width", [12, 40, 80])
def test_a_line_is_broken_between_words_alone(width: int) -> None:
    text = "best ndcg@20 0.1753 on validation, 2.15 times popularity: /a/long/path/of/a/run-1"
    lines = wrapped(text, width).split("\n")
    assert " ".join(lines) == text
    assert all(len(line) <= width or " " not in line for line in lines)
    assert wrapped("  indented", 80) == "  indented" and wrapped("", 80) == ""
    assert wrapped("  indented", 80) == "  indented"
    assert wrapped("日本語 タイトル", 8) == "日本語\nタイトル"


COMMANDS = (
    ["tandem", "prepare", "plays.csv", "DATA"],
    [
        "tandem",
        "prepare",
        "my plays.csv",
        "OUT",
        "--item-columns",
        "a title",
        "genre",
        "year",
        "at",
    ],
    ["tandem", "train", f"/{'p' * 90}/best.toml", "--data", "it's", "--out=-x", "--flag"],
    ["tandem", "recommend", "RUN", "--items", *[f"item {n}" for n in range(30)], "-k", "5"],
)


@pytest.mark.parametrize("width", [30, 80, 160, None])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("label", ["", "to go on:", "     "])
def test_a_command_can_be_pasted(label: str, command: list[str], width: int | None) -> None:
    text = pasted(label, command, width)
    assert text.startswith(label)
    assert shlex.split(text[len(label) :].replace("\\\n", "")) == command  # as a shell goes on
    whole = {shlex.quote(word) for word in command}
    for line in text.split("\n"):
        too_long = line.removesuffix(" \\").strip() in whole  # one word, which the terminal folds
        assert width is None or len(line) <= width or too_long
    assert width is not None or "\n" not in text


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("length", [30, 36, 39, 74, 79, 80, 200])
def test_a_label_never_stands_alone_before_a_path(width: int, length: int) -> None:
    """A path is no word to be broken by us; the terminal folds what it cannot show."""
    path = "/" + "p" * (length - 1)
    for label in ("error:", "next:", "warning:"):
        text = f"{label} {path} is no run, and nothing of it can be read"
        first, *rest = wrapped(text, width).split("\n")
        assert first.startswith(f"{label} {path}") and " ".join([first, *rest]) == text
        # What goes on behind the path stays within the row that the terminal has folded it to.
        behind = len(first) - len(f"{label} {path}")
        assert behind == 0 or (len(first) - 1) % width >= behind - 1
        assert all(len(line) <= width for line in rest)
