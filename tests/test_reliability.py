"""The tables of docs/reliability.md: the tests that they name are there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reliability.md"
NAMED = re.compile(r"`((?:tests/[\w/]+|test_\w+)\.py)?(?:::)?(test_\w+)?`")


@cache
def functions_of(file: Path) -> frozenset[str]:
    """Names of a file's test functions."""
    return frozenset(re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))


def named(text: str) -> list[tuple[str | None, str | None]]:
    """(file, function) of each test that a text names, either may be left out."""
    found = [match.groups() for match in NAMED.finditer(text)]
    return [(file, name) for file, name in found if file or name]


def missing(line: str) -> list[str]:
    """What a row names and is not there. A bare name is of the row's file, or of any."""
    wrong = []
    for file, name in named(line):
        files = (
            [ROOT / file]
            if file and "/" in file
            else list((ROOT / "tests").rglob(file or "test_*.py"))
        )
        if not any(
            each.is_file() and (name is None or name in functions_of(each)) for each in files
        ):
            wrong.append(f"{file or ''}::{name or ''}")
    return wrong


def rows() -> list[str]:
    lines = PAGE.read_text().splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| area")]


def test_tests_that_are_named_are_there() -> None:
    assert [gone for line in rows() for gone in missing(line)] == []
    assert sum(bool(named(line)) for line in rows()) > 80


def test_a_name_that_is_gone_would_be_found() -> None:
    assert missing("| x | `tests/test_flags.py::test_that_is_not` |")
    assert missing("| x | `tests/test_none.py` |") and missing("| x | `test_nowhere_at_all` |")
    assert not missing(
        "| x | `tests/test_reliability.py`, `test_a_name_that_is_gone_would_be_found` |"
    )


def test_every_row_of_what_was_mended_names_a_test() -> None:
    text = PAGE.read_text()
    table = text[text.index("## What was mended") :].split("\n## ")[0]
    mended = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(mended) > 50 and [line for line in mended if not named(line)] == []
