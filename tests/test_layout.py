"""The house keeps its order: small rooms, small files, and no two files of one name."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("cluster", "trainer", "embeddings", "losses")
CODE = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
FOLDERS = sorted({file.parent for file in CODE})
MOST_FILES = 15
MOST_LINES = 300
SAME_ON_PURPOSE = {"__init__", "choices"}


def of_root(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", FOLDERS, ids=of_root)
def test_a_folder_is_seen_at_a_glance_and_says_what_it_holds(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= MOST_FILES
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


def test_a_file_is_read_in_one_sitting() -> None:
    lines = {of_root(file): len(file.read_text().splitlines()) for file in CODE}
    assert {file: count for file, count in lines.items() if count > MOST_LINES} == {}


def test_a_name_is_of_one_file() -> None:
    """Whoever hears a name knows the file."""
    names = Counter(file.stem for file in CODE if file.stem not in SAME_ON_PURPOSE)
    assert [name for name, count in names.items() if count > 1] == []


def test_there_is_no_code_elsewhere() -> None:
    known = {*ROOMS, "tests", "deploy", "docs", "requirements"}
    folders = {file.relative_to(ROOT).parts[0] for file in ROOT.glob("*/**/*.py")}
    assert {name for name in folders if not name.startswith(".")} <= known
