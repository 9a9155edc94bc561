"""Sources: their files, the formats they are in, and tables of columns in them.

Every source becomes a SELECT of `raw_user, raw_item, rating, timestamp, given` (as the source types
them; NULL columns where it has none; `given` 0 train, 1 validation, 2 test, or NULL), of `event`,
`weight` and the context's columns `x0`, `x1`, ... where these are asked for, and up to two side
tables with attributes.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.base.mistake import Mistake
from trainer.files.filesystems import check_text, filesystem_of, is_uri, reached
from trainer.sources.columns import Columns, Table, resolve
from trainer.sources.kinds import Kind

GIVEN = {"train": 0, "valid": 1, "val": 1, "validation": 1, "test": 2}

USER_NAMES = ("user_id", "userid", "user", "uid", "visitorid", "reviewerid")
ITEM_NAMES = ("item_id", "itemid", "item", "iid", "movie_id", "movieid", "product_id", "asin")
TIMESTAMP_NAMES = ("timestamp", "time", "ts", "unixreviewtime", "datetime", "date")
RATING_NAMES = ("rating", "ratings", "score", "stars", "overall")
TITLE_NAMES = ("title", "movie_title", "name", "item_name", "product_title")


@dataclass(frozen=True)
class SideTable:
    """A table of items or users, one row each."""

    select: str
    """SELECT of `raw` and the columns as c0, c1, ..., in which a text is what it says."""
    select_ids: str
    """SELECT of `raw` alone, NULL where a text stands for a missing value."""
    id_column: str
    kinds: dict[str, Kind]
    """Columns but the id, by name, and how each is read as an attribute."""
    label: str
    """How messages call the file."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the file is read."""
    table: Table | None = None
    """The file, where its columns have names of its own."""
    vectors: dict[str, str] = field(default_factory=dict)
    """By name of a column that holds vectors by its type: SELECT of `raw` and `value`. It is read
    by itself; in `select` it is NULL."""
    varying: str | None = None
    """Of a table that rows of interactions repeat, see row_columns.py; None: it is a file."""

    def column(self, name: str) -> str:
        """The column's name in table `side_<side>`: none of the user's, which may be any."""
        return f"c{list(self.kinds).index(name)}"


@dataclass(frozen=True)
class Source:
    """Interactions as one SELECT, and what is known of them."""

    format: str
    select: str
    as_written: str
    """The same, where no text stands for a missing value."""
    given: tuple[str, ...]
    """Splits that the files name, () where they name none."""
    has_rating: bool
    has_timestamp: bool
    """Rows have times: a column of them, or under `in_order` their places."""
    columns: dict[str, str | None]
    """Column names used, for dataset.json."""
    context: dict[str, Kind] = field(default_factory=dict)
    """Columns of the context by name, in the order of x0, x1, ..., and how each is read."""
    unused: tuple[str, ...] = ()
    """Columns of the interactions that nothing reads."""
    files: tuple[str, ...] = ()
    """Files of interactions, where there are several."""
    select_of: Callable[[str], str] | None = None
    """The SELECT of one of these files."""
    items: SideTable | None = None
    users: SideTable | None = None
    label: str = ""
    """How messages call the source."""
    in_order: bool = False
    """A user's rows stand in time order, and their places are the times."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the source is read."""

    @property
    def has_events(self) -> bool:
        """Rows say what kind of event they are."""
        return self.columns.get("event") is not None

    @property
    def has_weight(self) -> bool:
        return self.columns.get("weight") is not None

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Its own notes and those on its side tables."""
        sides = [each.notes for each in (self.items, self.users) if each is not None]
        return (*self.notes, *(note for notes in sides for note in notes))


def in_order(source: Source, label: str) -> Source:
    """The source whose rows' places serve as times; raises Mistake where it has times."""
    if source.has_timestamp:
        raise Mistake(
            f"--in-order, but {label} has timestamps (column "
            f"{source.columns.get('timestamp')!r}), which say the order: leave --in-order out"
        )
    return replace(source, has_timestamp=True, in_order=True)


def list_files(source: str, what: str = "SOURCE") -> list[str]:
    """Files of a path, folder, glob or URI, sorted; raises where there are none.

    A path that is there is taken letter for letter; only what is not there is a pattern.
    """
    check_text(source, what)
    filesystem, path = filesystem_of(source)
    with reached(source):
        found = list(_found(filesystem, path, source))
        if not found:
            raise Mistake(f"{source} holds no files: give a file, a folder or a glob of data")
        sizes = {each: filesystem.size(each) for each in found}
    if all(size == 0 for size in sizes.values()):
        raise Mistake(f"{source} is empty (0 bytes): give a file with interactions")
    scheme = source.split("://", 1)[0] + "://" if is_uri(source) else ""
    for each in found:
        check_text(each, "the file name")
    return [scheme + each for each in sorted(found) if sizes[each] != 0]


def _found(filesystem: Any, path: str, source: str) -> Iterator[str]:
    if filesystem.isfile(path):
        yield path
    elif filesystem.isdir(path):
        below = _walk(path) if not is_uri(source) else filesystem.find(path)
        for each in below:
            if not any(part.startswith(".") for part in Path(each).relative_to(path).parts):
                yield each
    elif filesystem.exists(path):
        raise Mistake(f"{source} is neither a file nor a folder: give a file, a folder or a glob")
    elif glob.has_magic(path):
        yield from _matching(filesystem, path, source)
    else:
        raise Mistake(f"{source} does not exist: give a file, a folder or a glob of data")


def _walk(folder: str) -> Iterator[str]:
    """Regular files below a folder, those of linked folders once; raises where it cannot look."""

    def raise_(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for above, folders, names in os.walk(folder, onerror=raise_, followlinks=True):
        seen.add(os.path.realpath(above))
        folders[:] = [each for each in folders if os.path.realpath(f"{above}/{each}") not in seen]
        yield from (f"{above}/{each}" for each in names if Path(above, each).is_file())


def _matching(filesystem: Any, pattern: str, source: str) -> Iterator[str]:
    """Files that match a pattern, whose folders are taken letter for letter while they exist."""
    parts = Path(pattern).parts
    kept = 1
    while kept < len(parts) and filesystem.exists(str(Path(*parts[: kept + 1]))):
        kept += 1
    escaped = str(Path(glob.escape(str(Path(*parts[:kept]))), *parts[kept:]))
    if is_uri(source):
        found = filesystem.glob(escaped)
    else:
        found = glob.glob(escaped, recursive=True)  # noqa: PTH207  a pattern of its own folder
    yield from (each for each in found if filesystem.isfile(each))


def beside(file: str) -> list[str]:
    """Files in the folder of a file, that one among them."""
    filesystem, path = filesystem_of(file)
    scheme = file.split("://", 1)[0] + "://" if is_uri(file) else ""
    with reached(file):
        found = filesystem.ls(path.rpartition("/")[0] or "/", detail=False)
        return [scheme + each for each in sorted(found) if filesystem.isfile(each)]


def given_splits(files: list[str]) -> dict[str, list[str]]:
    """Files by the split that their names give; {} unless each names one, train among them.

    `train.parquet`, `ml.test.inter` and `validation/part-0.parquet` name a split.
    """
    found: dict[str, list[str]] = {}
    for each in files:
        path = Path(each)
        words = [*re.split(r"[._-]", path.name.lower()), path.parent.name.lower()]
        named = [word for word in words if word in GIVEN]
        if not named:
            return {}
        split = ("train", "validation", "test")[GIVEN[named[0]]]
        found.setdefault(split, []).append(each)
    return found if "train" in found and len(found) > 1 else {}


def title_column(items: SideTable | None, columns: Columns) -> str | None:
    """The title's column of the item table: as the user names it, or by a usual name."""
    if items is None:
        if columns.title is not None:
            raise Mistake(
                "--title-column needs items: give --items FILE, or --item-columns where the "
                "interactions hold it"
            )
        return None
    usual = columns.usual("title", TITLE_NAMES)
    known = dict.fromkeys(items.kinds, "")
    return resolve(columns.title, known, usual, "--title-column", items.label)


def unread(files: list[str], read: list[str]) -> tuple[str, ...]:
    """A note on files of a folder that no format has a use for."""
    left = [Path(each).name for each in files if each not in read]
    if not left:
        return ()
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return (f"not read: {', '.join(left[:5])}{more}",)
