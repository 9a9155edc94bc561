"""The site: no page is forgotten, and what is made of the code holds all of it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import COMMANDS
from tests.docs.blocks import ROOT
from trainer.config.sections import Config

DOCS = ROOT / "docs"
GENERATED = {
    "reference/commands.md",
    "reference/settings.md",
    "reference/python.md",
    "decisions/index.md",
}


def named_in(nav: Any) -> set[str]:
    """Paths in a navigation."""
    if isinstance(nav, str):
        return {nav}
    inner = nav.values() if isinstance(nav, dict) else nav
    return set().union(*map(named_in, inner))


def test_every_page_is_in_the_navigation() -> None:
    named = named_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    by_itself = {page for page in pages if page.startswith(("decisions/", "site/"))}
    assert pages - by_itself == named - GENERATED


@pytest.mark.parametrize(
    "picture",
    [*sorted(DOCS.glob("how/*.svg")), *sorted(DOCS.glob("guides/*.svg"))],
    ids=lambda path: path.stem,
)
def test_pictures_have_both_colours_and_words(picture: Path) -> None:
    text = picture.read_text()
    assert "prefers-color-scheme: dark" in text
    assert "<title>" in text and "<desc>" in text
    assert any(f"]({picture.name})" in page.read_text() for page in picture.parent.glob("*.md"))


def test_every_screen_that_a_page_shows_is_there() -> None:
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    shown = {
        name for page in pages for name in re.findall(r"screens/([\w.-]+)\)", page.read_text())
    }
    there = {file.name for file in (DOCS / "assets" / "screens").iterdir()}
    assert shown and shown <= there


def test_the_reference_has_every_command_and_setting() -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make docs")
    from docs.site.reference import commands_page, decisions_page, settings_page

    commands = commands_page()
    for name in COMMANDS:
        assert f"\n## tandem {name}\n" in commands
    rows = [line for line in settings_page().splitlines() if line.startswith("| `--")]
    assert len(rows) == number_of_settings(Config()) > 60
    for row in rows:
        assert all(cell.strip() for cell in row.strip("|").split(" | ")), row
    for file in DOCS.glob("decisions/0*.md"):
        assert f"({file.name})" in decisions_page()


def test_the_readme_has_every_command_in_one_table() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, command in COMMANDS.items():
        assert f"| `tandem {name}` | {command.summary} |\n" in readme


def number_of_settings(section: Any) -> int:
    """Fields of a config that are no section themselves."""
    values = [getattr(section, field.name) for field in dataclasses.fields(section)]
    return sum(
        number_of_settings(value) if dataclasses.is_dataclass(value) else 1 for value in values
    )
