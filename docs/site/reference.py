"""mkdocs hook: the pages that are made of the code itself.

reference/commands.md   every command's `--help`, as the command prints it
reference/settings.md   every field of `Config`: default, what it may be, its docstring
reference/python.md     docstrings of what others may import (mkdocstrings)
decisions/index.md      the titles of docs/decisions/
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typing_extensions import Doc

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 92
"""Characters of a line of help."""
PARTS_OF_BENCH = ("loss", "step", "data", "eval", "sequence", "serve")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every decision into the navigation, in the section that is there for them."""
    assert config.nav is not None
    (section,) = (entry["Decisions"] for entry in config.nav if "Decisions" in entry)
    section += [f"decisions/{file.name}" for file in decisions()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Path below docs/ and Markdown of each generated page."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/python.md": python_page(),
        "decisions/index.md": decisions_page(),
    }


def commands_page() -> str:
    """Each subcommand, with what its `--help` prints."""
    from cluster.cli import COMMANDS

    parts = ["# Commands", "", "What `tandem COMMAND --help` prints.", ""]
    for name, command in COMMANDS.items():
        parts += [f"## tandem {name}", "", f"{command.summary}.", ""]
        asked = [[name, part] for part in PARTS_OF_BENCH] if name == "bench" else [[name]]
        for words in asked:
            parts += ["```text", help_of(words), "```", ""]
    return "\n".join(parts)


def help_of(words: list[str]) -> str:
    """What `tandem WORDS --help` prints; of a command with `--help-all`, that."""
    text = _printed([*words, "--help"])
    return _printed([*words, "--help-all"]) if "--help-all" in text else text


def _printed(words: list[str]) -> str:
    from cluster.cli import main

    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(words)
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    text = out.getvalue().strip()
    assert text, f"`tandem {' '.join(words)}` prints nothing"
    return "\n".join(line.rstrip() for line in text.splitlines())


def settings_page() -> str:
    """Every section of `Config`, a table each."""
    from trainer.config.presets import PRESETS
    from trainer.config.sections import Config

    parts = [
        "# Settings",
        "",
        "A run is a preset whose settings are changed by flags, `--section.field VALUE`. All of "
        "them are written to `RUN/config.json`.",
        "",
        f"Presets: {', '.join(f'`{name}`' for name in PRESETS)}.",
        "",
    ]
    return "\n".join([*parts, *_sections(Config(), "")])


def _sections(section: Any, prefix: str) -> list[str]:
    """The table of a section's own fields, then those of the sections within it."""
    from trainer.base.typed import allowed, fields_of

    kind = type(section)
    documents = _documents_of(kind)
    rows, inner = [], []
    for name, annotation in fields_of(kind).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            inner += _sections(value, f"{prefix}{name}.")
            continue
        flag = _flag(annotation, prefix, name)
        cells = (f"`{flag}`", f"`{_shown(value)}`", allowed(annotation))
        cells += (_told(annotation) or documents.get(name, ""),)
        rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    if not rows:
        return inner
    head = ["| setting | default | may be | what it is |", "|---|---|---|---|"]
    return [f"## {prefix.rstrip('.')}", "", kind.__doc__ or "", "", *head, *rows, "", *inner]


def _flag(annotation: Any, prefix: str, name: str) -> str:
    """The field's flag: its path, or the name that its annotation gives it."""
    for each in getattr(annotation, "__metadata__", ()):
        if not getattr(each, "prefix_name", True):
            return f"--{each.name}"
    return f"--{prefix}{name}".replace("_", "-")


def _documents_of(kind: type) -> dict[str, str]:
    """The docstrings below a dataclass's fields."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        module = griffe.load(each.__module__, search_paths=[ROOT], resolve_aliases=False)
        for name, member in module[each.__name__].members.items():
            if member.is_attribute and member.docstring is not None:
                found[name] = member.docstring.value
    return found


def _told(annotation: Any) -> str:
    """What an annotation says itself: the losses' settings have no docstring of their own."""
    said = (each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Doc))
    return next((each.documentation for each in said), "")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def python_page() -> str:
    """Docstrings of what others import: the facade, where there is one, and the losses."""
    facade = ["## tandem", "", "::: tandem", ""] if (ROOT / "tandem.py").is_file() else []
    return "\n".join(
        [
            "# Python",
            "",
            *facade,
            "## losses",
            "",
            "Usable in a PyTorch loop of your own: the package imports torch alone.",
            "",
            "::: losses",
            "    options:",
            "      show_root_heading: false",
            "      filters: ['!^_']",
            "",
            "## Prepared datasets",
            "",
            "::: trainer.data.schema.Dataset",
            "",
        ]
    )


def decisions() -> list[Path]:
    """The files of docs/decisions/, by number."""
    return sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def decisions_page() -> str:
    """A line for each decision, by its number."""
    parts = ["# Decisions", "", "What was decided, and why; a file each.", ""]
    for file in decisions():
        title = file.read_text().splitlines()[0].removeprefix("# ")
        number, _, words = title.partition(". ")
        parts.append(f"- {number}: [{words}]({file.name})")
    return "\n".join([*parts, ""])
