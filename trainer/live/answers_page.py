"""Recommendations, or the neighbours of an item, as a page that a person can look at.

Titles and ids are other people's words and are escaped; pages ask nobody for anything. Pictures are
shown where they are asked for alone: whoever serves them learns who looks at which items, and when.
The page's policy then allows the named origins, and the browser sends them no referrer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from trainer.base.mistake import Mistake
from trainer.bundle.asked import Item, Recommendations
from trainer.files.storage import write_whole
from trainer.live.document import Cell, Document, Picture
from trainer.live.page_place import free_place
from trainer.sources.sources import ITEM_NAMES

TITLE = "Tandem answers: "
Images = Callable[[Item], str | None]
"""The address of an item's picture; None: it has none."""
ITEM = "{item}"
ADDRESS = re.compile(r"(https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?)/")
"""Of a picture, and its origin: nothing in it ends a policy or begins another."""


def images_of(given: str) -> Images:
    """Pictures by a pattern of their addresses, or by a column of a table.

    Args:
        given: `https://cdn.example/{item}.jpg`, {item} in place of the raw id, or
            `items.csv:image_url`, a file whose ids are in its column of items, or its first one.

    Raises:
        Mistake: where it is neither.
    """
    if ITEM in given:
        if _origin(given) is None:
            raise Mistake(
                f"--images {given!r:.80}: {ITEM} stands in the path of an address, as in "
                "https://cdn.example/covers/{item}.jpg"
            )
        return lambda item: given.replace(ITEM, quote(str(item.raw_id), safe=""))
    file, _, column = given.rpartition(":")
    if not file or not Path(file).is_file():
        raise Mistake(
            f"--images {given!r:.80}: give FILE:COLUMN, a table with the addresses of pictures, or "
            "an address with {item} in place of the id, as https://cdn.example/{item}.jpg"
        )
    urls = _column(file, column)
    return lambda item: urls.get(str(item.raw_id))


def _column(file: str, column: str) -> dict[str, str]:
    """Addresses by raw id, as text; those that are no address are left out."""
    import duckdb  # where it is asked for

    with closing(duckdb.connect()) as connection:
        if file.endswith(".parquet"):
            table = connection.read_parquet(file)
        else:
            table = connection.read_csv(file, all_varchar=True, header=True)
        if column not in table.columns:
            raise Mistake(f"--images: {file} has no column {column!r}: {', '.join(table.columns)}")
        usual = [name for name in table.columns if name.lower() in ITEM_NAMES]
        key = (usual or table.columns)[0]
        asked = (duckdb.ColumnExpression(name) for name in (key, column))
        pairs = table.select(*asked).fetchall()
    return {str(raw_id): str(url) for raw_id, url in pairs if _origin(str(url)) is not None}


class AnswersPage:
    """A page that is asked for. Raises Mistake where its place is taken, or `images` is nothing.

    Args:
        html: file to write.
        images: as `images_of` has it; None: no pictures.
    """

    def __init__(self, html: str, images: str | None = None) -> None:
        self.place = free_place(html, TITLE, "--html", "answers.html")
        self._images = None if images is None else images_of(images)

    def write(
        self,
        found: Recommendations,
        heading: str,
        about: str,
        notes: Sequence[str],
        score: str = "score",
        beside: str = "recent history, newest first",
    ) -> None:
        """Write it whole or not at all.

        Args:
            heading: whom it is for, or what the items are like.
            about: where the answer is from.
            notes: what to know of the list.
            score: what the items stand in the order of.
            beside: what the history is.
        """
        self.place.parent.mkdir(parents=True, exist_ok=True)
        page, origins = Document(f"{TITLE}{heading}"), dict[str, None]()
        page.head(heading, about)
        cells = [self._cells(item, origins) for item in found.items]
        rows = [
            [(f"{rank}", "name"), *of_item, (f"{value:.4f}", "score")]
            for rank, (of_item, value) in enumerate(zip(cells, found.scores, strict=True), 1)
        ]
        named = [*([""] if self._images is not None else []), "item", "id"]
        tables = [(f"{len(rows):,} items", ["", *named, score], rows)]
        if found.history:
            past = [self._cells(item, origins) for item in found.history]
            tables.append((beside, named, past))
        page.beside(tables)
        for note in notes:
            page.words(note)
        page.images = tuple(origins)
        write_whole(self.place, page.written())

    def _cells(self, item: Item, origins: dict[str, None]) -> list[Cell]:
        """An item's picture, where the page has some, title and id; notes the picture's origin."""
        raw_id = str(item.raw_id)
        named: list[Cell] = [
            (item.title or raw_id, "title"),
            (raw_id if item.title else "", "soft"),
        ]
        if self._images is None:
            return named
        url = self._images(item)
        origin = None if url is None else _origin(url)
        if url is None or origin is None:
            return ["", *named]
        origins[origin] = None
        return [Picture(url), *named]


def _origin(url: str) -> str | None:
    """`https://cdn.example:8080`; None: it is no address that may stand in a page's policy."""
    found = ADDRESS.match(url)
    return None if found is None else found[1]
