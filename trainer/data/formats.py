"""The readers: one function a format, each returning a `Source`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import fsspec

from trainer.data import sql
from trainer.data.sources import (
    FORMATS,
    GIVEN,
    ITEM_NAMES,
    RATING_NAMES,
    TIMESTAMP_NAMES,
    USER_NAMES,
    Columns,
    SideTable,
    Source,
    given_splits,
    list_files,
    recognise,
    required,
    resolve,
    table_of,
)
from trainer.mistake import Mistake

RECBOLE_KINDS = {"token": "text", "token_seq": "multi: ", "float": "buckets", "float_seq": "list"}

LINE_BYTES = 16 << 20
"""Longest line of LightGCN's text: two million items of one user."""


@dataclass(frozen=True)
class SideFiles:
    """Side tables that the user named."""

    items: str | None = None
    users: str | None = None


def read_source(
    connection: duckdb.DuckDBPyConnection,
    path: str,
    format: str | None,
    columns: Columns,
    side: SideFiles,
) -> Source:
    """Recognise and describe a source; reads headers and schemas, no data."""
    if format is not None and format not in FORMATS:
        raise Mistake(
            f"unknown format {format!r}. {sql.near(format, FORMATS)}; or leave --format out"
        )
    for each in (path, side.items, side.users):
        if each is not None and "://" in each:
            connection.register_filesystem(fsspec.core.url_to_fs(each)[0])
    aside = {str(Path(each).resolve()) for each in (side.items, side.users) if each is not None}
    files = [each for each in list_files(path) if str(Path(each).resolve()) not in aside]
    if not files:
        raise Mistake(f"{path} holds no interactions besides --items and --users")
    match format or recognise(path, files):
        case "lightgcn":
            source = _lightgcn(path, files)
        case "recbole":
            source = _recbole(connection, path, files, columns)
        case "movielens":
            source = _movielens(path, files)
        case "csv":
            wanted = [each for each in files if {".csv", ".tsv"} & set(Path(each).suffixes)]
            source = _table(connection, path, "csv", wanted or files, columns)
        case _:
            wanted = [each for each in files if each.endswith(".parquet")]
            source = _table(connection, path, "parquet", wanted or files, columns)
    return _with_side_files(connection, source, columns, side)


def _lightgcn(path: str, files: list[str]) -> Source:
    """Lines `user item item ...` in train.txt, test.txt (and valid.txt), or in one file."""
    texts = [each for each in files if Path(each).suffix == ".txt" and Path(each).stem in GIVEN]
    if not texts:
        if len(files) > 1:
            raise Mistake(f"{path} has no train.txt: the lightgcn format needs it")
        texts = files
    texts.sort(key=lambda each: GIVEN.get(Path(each).stem, 0))
    parts = [
        f"""SELECT words[1] AS raw_user, unnest(words[2:]) AS raw_item,
            {GIVEN.get(Path(each).stem, 0)}::TINYINT AS given
        FROM (SELECT string_split_regex(trim(line), '\\s+') AS words
              FROM read_csv({sql.text(each)}, columns={{'line': 'VARCHAR'}}, delim='\\n', quote='',
                            escape='', header=false, auto_detect=false, max_line_size={LINE_BYTES},
                            buffer_size={2 * LINE_BYTES})
              WHERE trim(line) <> '')"""
        for each in texts
    ]
    names = tuple(dict.fromkeys(("train", "validation", "test")[_given(each)] for each in texts))
    given = names if len(names) > 1 else ()
    split = "given" if given else "NULL::TINYINT AS given"
    select = (
        "SELECT raw_user, raw_item, NULL::DOUBLE AS rating, NULL::BIGINT AS timestamp, "
        f"{split} FROM ({' UNION ALL '.join(parts)})"
    )
    return Source("lightgcn", select, given, False, False, {})


def _given(file_name: str) -> int:
    return GIVEN.get(Path(file_name).stem, 0)


def _recbole(
    connection: duckdb.DuckDBPyConnection, path: str, files: list[str], columns: Columns
) -> Source:
    """RecBole's atomic files: NAME.inter (or NAME.train.inter ...), NAME.item, NAME.user."""
    inter = [each for each in files if each.endswith(".inter")]
    if not inter:
        raise Mistake(f"{path} has no .inter file: the recbole format needs one")
    source = _table(connection, path, "recbole", inter, columns)
    folder = Path(path) if len(files) > 1 or files[0] != path else Path(path).parent
    beside = [str(each) for each in sorted(folder.glob("*"))] if "://" not in path else files
    sides: dict[str, SideTable | None] = {}
    for suffix, usual in (("item", ITEM_NAMES), ("user", USER_NAMES)):
        found = [each for each in beside if each.endswith(f".{suffix}")]
        sides[suffix] = _side(connection, "recbole", found[0], None, usual) if found else None
    return Source(**{**vars(source), "items": sides["item"], "users": sides["user"]})


def _movielens(path: str, files: list[str]) -> Source:
    """ratings.dat, movies.dat and users.dat with `::` between columns, in Latin-1."""
    by_name = {Path(each).name: each for each in files}
    if "ratings.dat" not in by_name:
        raise Mistake(f"{path} has no ratings.dat: the movielens format needs it")

    def table(file_name: str, names: str) -> str:
        columns = ", ".join(f"'{each}': 'VARCHAR'" for each in names.split())
        return (
            f"read_csv({sql.text(by_name[file_name])}, columns={{{columns}}}, delim='::', "
            "quote='', escape='', header=false, auto_detect=false, encoding='latin-1')"
        )

    ratings = table("ratings.dat", "user_id item_id rating timestamp")
    select = (
        "SELECT user_id AS raw_user, item_id AS raw_item, rating, timestamp, "
        f"NULL::TINYINT AS given FROM {ratings}"
    )
    names = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
    items = users = None
    if "movies.dat" in by_name:
        kinds = {"title": "text", "genres": "multi:|"}
        items = SideTable(
            table("movies.dat", "item_id title genres"), "item_id", kinds, by_name["movies.dat"]
        )
    if "users.dat" in by_name:
        kinds = dict.fromkeys(("gender", "age", "occupation", "zip_code"), "text")
        relation = table("users.dat", "user_id gender age occupation zip_code")
        users = SideTable(relation, "user_id", kinds, by_name["users.dat"])
    return Source("movielens", select, (), True, True, {**names}, items, users)


def _table(
    connection: duckdb.DuckDBPyConnection,
    path: str,
    format: str,
    files: list[str],
    columns: Columns,
) -> Source:
    """Interactions in columns: Parquet, CSV, TSV, or RecBole's .inter files."""
    by_split = given_splits(files) or {"": files}
    selects = []
    used: dict[str, str | None] = {}
    for split, of_split in by_split.items():
        relation = table_of(connection, format, of_split, path)
        known = sql.columns_of(connection, relation)
        used = {
            "user": required(columns.user, known, USER_NAMES, "--user-column", path),
            "item": required(columns.item, known, ITEM_NAMES, "--item-column", path),
            "rating": resolve(columns.rating, known, RATING_NAMES, "--rating-column", path),
            "timestamp": resolve(
                columns.timestamp, known, TIMESTAMP_NAMES, "--timestamp-column", path
            ),
        }
        if used["user"] == used["item"]:
            raise Mistake(f"--user-column and --item-column are both {used['user']!r}")
        given = str(GIVEN[split]) if split else "NULL"
        selects.append(
            f"SELECT {_column(used['user'])} AS raw_user, {_column(used['item'])} AS raw_item, "
            f"{_column(used['rating'])} AS rating, {_column(used['timestamp'])} AS timestamp, "
            f"{given}::TINYINT AS given FROM {relation}"
        )
    return Source(
        format=format,
        select=" UNION ALL ".join(selects),
        given=tuple(each for each in by_split if each),
        has_rating=used["rating"] is not None,
        has_timestamp=used["timestamp"] is not None,
        columns=used,
    )


def _column(column: str | None) -> str:
    return "NULL" if column is None else sql.name(column)


def _with_side_files(
    connection: duckdb.DuckDBPyConnection, source: Source, columns: Columns, side: SideFiles
) -> Source:
    """The source with the side tables that the user named in place of those found beside it."""
    items, users = source.items, source.users
    if side.items is not None:
        wanted = _own_name(columns.item or source.columns.get("item"))
        items = _side_file(connection, side.items, wanted, columns.item, ITEM_NAMES)
    if side.users is not None:
        wanted = _own_name(columns.user or source.columns.get("user"))
        users = _side_file(connection, side.users, wanted, columns.user, USER_NAMES)
    return Source(**{**vars(source), "items": items, "users": users})


def _own_name(column: str | None) -> str | None:
    return None if column is None else column.split(":")[0]


def _side_file(
    connection: duckdb.DuckDBPyConnection,
    path: str,
    wanted: str | None,
    named: str | None,
    usual: tuple[str, ...],
) -> SideTable:
    """A named side file: its id column is called as in the interactions, or by a usual name."""
    files = list_files(path)
    suffix = Path(files[0]).suffix
    format = {".parquet": "parquet", ".item": "recbole", ".user": "recbole"}.get(suffix, "csv")
    names = (wanted.lower(), *usual) if wanted is not None and named is None else usual
    return _side(connection, format, path, wanted if named else None, names)


def _side(
    connection: duckdb.DuckDBPyConnection,
    format: str,
    path: str,
    wanted: str | None,
    usual: tuple[str, ...],
) -> SideTable:
    relation = table_of(connection, format, list_files(path), path)
    known = sql.columns_of(connection, relation)
    flag = "--user-column" if usual[-1] in USER_NAMES else "--item-column"
    id_column = required(wanted, known, usual, flag, path)
    kinds: dict[str, str] = {}
    for column, column_type in known.items():
        if column != id_column:
            kinds[column] = _kind(column, column_type)
    return SideTable(relation, id_column, kinds, path)


def _kind(column: str, column_type: str) -> str:
    """How a column is read as an attribute: by RecBole's header, else by its type."""
    if ":" in column and column.split(":")[1] in RECBOLE_KINDS:
        return RECBOLE_KINDS[column.split(":")[1]]
    if column_type.endswith("[]"):
        return "list"
    if column_type == "VARCHAR":
        return "text?"
    return "number"
