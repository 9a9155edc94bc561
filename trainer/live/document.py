"""A page that is read: headings, sentences, figures, tables and charts, one below the other.

All words that are given are other people's: they are escaped here, and nowhere else.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.live.drawing import Bars, Chart
from trainer.live.page import as_script_data, asset, page

NOTHING = "–"


@dataclass(frozen=True)
class Picture:
    """An image from elsewhere, of an origin that the page may ask."""

    url: str


Cell = str | tuple[str, str] | Picture
"""Words, or words and a class of page.css, or a picture."""


@dataclass
class Document:
    """Parts in order; `written` is the whole page."""

    title: str
    """Of the window."""
    parts: list[str] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    images: tuple[str, ...] = ()
    """Origins whose images it may show."""

    def head(self, name: str, words: str) -> None:
        self.parts.append(
            f'<header><h1>{html.escape(name)}</h1><div class="state">{html.escape(words)}</div>'
            "</header>"
        )

    def verdict(self, *sentences: str) -> None:
        """What a reader takes away who reads no further."""
        said = "".join(f"<p>{html.escape(each)}</p>" for each in sentences)
        self.parts.append(f'<div class="verdict">{said}</div>')

    def heading(self, words: str) -> None:
        self.parts.append(f"<h2>{html.escape(words)}</h2>")

    def words(self, words: str) -> None:
        self.parts.append(f'<p class="note">{html.escape(words)}</p>')

    def figures(self, figures: Sequence[tuple[str, str, str]]) -> None:
        """Big numbers: (name, value, note)."""
        cards = "".join(
            f'<div class="card number"><h3>{html.escape(name)}</h3><b>{html.escape(value)}</b>'
            f"<span>{html.escape(note)}</span></div>"
            for name, value, note in figures
        )
        self.parts.append(f'<div class="numbers">{cards}</div>')

    def drawn(self, *charts: Chart | Bars) -> None:
        """Charts beside each other."""
        made = []
        for chart in charts:
            made.append(f'<div class="card" data-chart="{len(self.charts)}"></div>')
            self.charts.append(chart.as_drawn())
        self.parts.append(f'<div class="grid">{"".join(made)}</div>')

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> None:
        """rows: a `Cell` each. kind: "figures": all columns but the first stand at the right."""
        heads = "".join(_head(each, rows, place) for place, each in enumerate(headings))
        head = f"<thead><tr>{heads}</tr></thead>" if any(headings) else ""
        lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        table = f'<table class="{kind}">{head}<tbody>{lines}</tbody></table>'
        self.parts.append(f'<div class="card wide">{table}</div>')

    def beside(self, tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]]) -> None:
        """Tables beside each other: (words above, headings, rows of cells)."""
        made = []
        for words, headings, rows in tables:
            inside = self.part()
            inside.table(headings, rows)
            made.append(f"<section><h2>{html.escape(words)}</h2>{inside.parts[0]}</section>")
        self.parts.append(f'<div class="grid">{"".join(made)}</div>')

    def panels(self, words: str) -> None:
        """Where the panels of runs go, folded away."""
        self.parts.append(f'<details id="panels"><summary>{html.escape(words)}</summary></details>')

    def fold(self, summary: str, other: Document) -> None:
        """Another document's parts, folded away."""
        assert not other.charts
        inside = "\n".join(other.parts)
        self.parts.append(f"<details><summary>{html.escape(summary)}</summary>{inside}</details>")

    def part(self) -> Document:
        """An empty one, to be folded away."""
        return Document(self.title)

    def written(self, data: dict[str, Any] | None = None) -> str:
        """The whole page, which asks nobody for anything.

        Args:
            data: runs and rows of panels, for `panels`.
        """
        if not self.charts and data is None:
            return page(self.title, "\n".join(self.parts), [], images=self.images)
        scripts = [asset("echarts.min.js"), as_script_data("CHARTS", self.charts)]
        scripts.append(asset("charts.js"))
        if data is not None:
            scripts += [as_script_data("DATA", data), asset("panels.js")]
        return page(self.title, "\n".join(self.parts), [*scripts, asset("document.js")])


def _head(words: str, rows: Sequence[Sequence[Any]], place: int) -> str:
    """It stands where its column's words do."""
    kinds = {cell[1] for row in rows for cell in row[place : place + 1] if isinstance(cell, tuple)}
    at_left = ' class="left"' if any("left" in kind.split() for kind in kinds) else ""
    return f"<th{at_left}>{html.escape(words)}</th>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Picture):
        url = html.escape(cell.url)
        return f'<td class="picture"><img src="{url}" alt="" loading="lazy" height="48"></td>'
    words, kind = (cell, "") if isinstance(cell, str) else cell
    styled = f' class="{kind}"' if kind else ""
    return f"<td{styled}>{html.escape(words)}</td>"
