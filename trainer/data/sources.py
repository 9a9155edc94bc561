"""Formats that prepare reads, each brought to one SELECT.

Every source becomes a SELECT of `raw_user, raw_item, rating, timestamp, given` (as the source types
them; NULL columns where it has none; `given` 0 train, 1 validation, 2 test, or NULL), and up to two
side tables with attributes.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import duckdb
import fsspec

from trainer.data import sql
from trainer.mistake import Mistake

Format = Literal["lightgcn", "recbole", "parquet", "csv", "movielens"]
FORMATS = ("lightgcn", "recbole", "parquet", "csv", "movielens")
GIVEN = {"train": 0, "valid": 1, "val": 1, "validation": 1, "test": 2}

USER_NAMES = ("user_id", "userid", "user", "uid", "visitorid", "reviewerid")
ITEM_NAMES = ("item_id", "itemid", "item", "iid", "movie_id", "movieid", "product_id", "asin")
TIMESTAMP_NAMES = ("timestamp", "time", "ts", "unixreviewtime", "datetime", "date")
RATING_NAMES = ("rating", "ratings", "score", "stars", "overall")
TITLE_NAMES = ("title", "movie_title", "name", "item_name", "product_title")


@dataclass(frozen=True)
class Columns:
    """Columns named by the user; None is recognised by name."""

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None


@dataclass(frozen=True)
class SideTable:
    """A table of items or users, one row each."""

    relation: str
    """SQL after FROM."""
    id_column: str
    kinds: dict[str, str]
    """Attribute columns by name: text, multi:<separator>, list, number or buckets."""
    label: str
    """How messages call the file."""


@dataclass(frozen=True)
class Source:
    """Interactions as one SELECT, and what is known of them."""

    format: str
    select: str
    given: tuple[str, ...]
    """Splits that the files name, () where they name none."""
    has_rating: bool
    has_timestamp: bool
    """Rows have times: a column of them, or under `in_order` their places."""
    columns: dict[str, str | None]
    """Column names used, for dataset.json."""
    items: SideTable | None = None
    users: SideTable | None = None
    in_order: bool = False
    """A user's rows stand in time order, and their places are the times."""


def in_order(source: Source, label: str) -> Source:
    """The source whose rows' places serve as times; raises Mistake where it has times."""
    if source.has_timestamp:
        raise Mistake(
            f"--in-order, but {label} has timestamps (column "
            f"{source.columns.get('timestamp')!r}), which say the order: leave --in-order out"
        )
    return replace(source, has_timestamp=True, in_order=True)


def list_files(source: str) -> list[str]:
    """Files of a path, folder, glob or URI, sorted; raises where there are none."""
    filesystem, path = fsspec.core.url_to_fs(source)
    if "*" in path or "?" in path:
        found = [each for each in filesystem.glob(path) if filesystem.isfile(each)]
    elif filesystem.isdir(path):
        found = [each for each in filesystem.find(path) if not Path(each).name.startswith(".")]
    elif filesystem.exists(path):
        found = [path]
    else:
        raise Mistake(f"{source} does not exist: give a file, a folder or a glob of data")
    if not found:
        raise Mistake(f"{source} holds no files: give a file, a folder or a glob of data")
    sizes = {each: filesystem.size(each) for each in found}
    if not any(sizes.values()):
        raise Mistake(f"{source} is empty (0 bytes): give a file with interactions")
    scheme = source.split("://", 1)[0] + "://" if "://" in source else ""
    return [scheme + each for each in sorted(found) if sizes[each]]


def recognise(source: str, files: list[str]) -> Format:
    """The format of files by their names."""
    names = [Path(each).name for each in files]
    suffixes = {_suffix(each) for each in names}
    if any(each.endswith(".inter") for each in names):
        return "recbole"
    if "ratings.dat" in names:
        return "movielens"
    if "train.txt" in names or (suffixes == {".txt"} and len(names) == 1):
        return "lightgcn"
    if ".parquet" in suffixes:
        return "parquet"
    if suffixes & {".csv", ".tsv"}:
        return "csv"
    raise Mistake(
        f"the format of {source} is not recognised by its files ({', '.join(names[:5])}): "
        f"say --format {'|'.join(FORMATS)}"
    )


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


def header_of(path: str, label: str) -> tuple[list[str], str]:
    """Column names of a text table and its delimiter: the one most frequent in the first line."""
    with fsspec.open(path, "rt", compression="infer", encoding="utf-8-sig") as stream:
        line = stream.readline().rstrip("\r\n")
    if not line.strip():
        raise Mistake(f"{label} is empty: its first line has no column names")
    delimiter = "\t" if _suffix(path) not in (".csv", ".txt") else max(",\t;|", key=line.count)
    names = next(csv.reader([line], delimiter=delimiter))
    if len(set(names)) < len(names):
        raise Mistake(f"{label} has a column name twice: {', '.join(names)}. Rename one")
    return names, delimiter


def table_of(
    connection: duckdb.DuckDBPyConnection, format: str, files: list[str], label: str
) -> str:
    """SQL after FROM that reads all columns of files with a header (or a schema)."""
    if format == "parquet":
        relation = f"read_parquet({sql.texts(files)}, union_by_name=true)"
    else:
        names, delimiter = header_of(files[0], label)
        for other in files[1:]:
            if header_of(other, label)[0] != names:
                raise Mistake(
                    f"{other} has other columns than {files[0]} ({', '.join(names)}): "
                    "give files with one header, or name the one file"
                )
        quote = '"' if delimiter != "\t" else ""
        columns = ", ".join(f"{sql.text(each)}: 'VARCHAR'" for each in names)
        relation = (
            f"read_csv({sql.texts(files)}, delim={sql.text(delimiter)}, quote={sql.text(quote)}, "
            f"escape={sql.text(quote)}, header=true, auto_detect=false, columns={{{columns}}})"
        )
    try:
        sql.columns_of(connection, relation)
    except duckdb.Error as error:
        raise Mistake(f"{label} cannot be read as {format}: {_first_line(error)}") from error
    return relation


def resolve(
    wanted: str | None, known: dict[str, str], usual: tuple[str, ...], flag: str, label: str
) -> str | None:
    """A column by the user's name for it, or by the usual names; None where there is none.

    RecBole's headers carry a type (`user_id:token`), which may be left out.
    """
    plain = {each.split(":")[0]: each for each in known}
    if wanted is not None:
        if wanted in known:
            return wanted
        if wanted in plain:
            return plain[wanted]
        raise Mistake(f"{label} has no column {wanted!r} ({flag}). {sql.near(wanted, plain)}")
    lowered = {each.lower(): full for each, full in plain.items()}
    return next((lowered[each] for each in usual if each in lowered), None)


def required(
    wanted: str | None, known: dict[str, str], usual: tuple[str, ...], flag: str, label: str
) -> str:
    """`resolve`, raising where there is no such column."""
    column = resolve(wanted, known, usual, flag, label)
    if column is None:
        raise Mistake(
            f"{label} has no column called {' or '.join(usual[:3])}: name it with {flag}. "
            f"There are: {', '.join(known)}"
        )
    return column


def _suffix(file_name: str) -> str:
    """The suffix that tells a format: `.csv` of `a.csv.gz`."""
    suffixes = [each.lower() for each in Path(file_name).suffixes]
    while suffixes and suffixes[-1] in (".gz", ".zst", ".bz2"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def title_column(items: SideTable | None, wanted: str | None) -> str | None:
    """The title's column of the item table: as the user names it, or by a usual name."""
    if items is None:
        if wanted is not None:
            raise Mistake("--title-column needs a file of items: give --items FILE")
        return None
    return resolve(wanted, items.kinds, TITLE_NAMES, "--title-column", items.label)
