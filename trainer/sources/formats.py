"""The readers: one function a format, each returning a `Source`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.checks import null_text
from trainer.sources.columns import Columns, Table, required, resolve
from trainer.sources.kinds import Kind
from trainer.sources.side_tables import SideFiles, side_select, side_table, with_side_files
from trainer.sources.sources import (
    FORMATS,
    GIVEN,
    ITEM_NAMES,
    RATING_NAMES,
    TIMESTAMP_NAMES,
    USER_NAMES,
    SideTable,
    Source,
    beside,
    given_splits,
    list_files,
    recognise,
    unread,
)
from trainer.sources.text_files import nulls_told, suffix_of

LINE_BYTES = 16 << 20
"""Longest line of LightGCN's text: two million items of one user."""
DAT_COLUMNS = {
    "ratings.dat": ("user_id", "item_id", "rating", "timestamp"),
    "movies.dat": ("item_id", "title", "genres"),
    "users.dat": ("user_id", "gender", "age", "occupation", "zip_code"),
}


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
    named = {"--items": side.items, "--users": side.users}
    aside = [each for flag, given in named.items() if given for each in list_files(given, flag)]
    files = [each for each in list_files(path) if each not in aside]
    if not files:
        raise Mistake(f"{path} holds no interactions besides --items and --users")
    match format or recognise(path, files):
        case "lightgcn":
            source, read = _lightgcn(connection, path, files)
        case "recbole":
            source, read = _recbole(connection, path, files, columns)
        case "movielens":
            source, read = _movielens(connection, path, files)
        case "csv":
            read = [each for each in files if suffix_of(each) in (".csv", ".tsv")] or files
            source = _table(connection, path, "csv", read, columns)
        case _:
            read = [each for each in files if suffix_of(each) == ".parquet"] or files
            source = _table(connection, path, "parquet", read, columns)
    source = replace(source, label=path, notes=(*source.notes, *unread(files, read)))
    return with_side_files(connection, source, columns, side)


def _lightgcn(
    connection: duckdb.DuckDBPyConnection, path: str, files: list[str]
) -> tuple[Source, list[str]]:
    """Lines `user item item ...` in train.txt, test.txt (and valid.txt), or in one file."""
    texts = [each for each in files if suffix_of(each) == ".txt" and _given(each) is not None]
    if not texts:
        if len(files) > 1:
            raise Mistake(f"{path} has no train.txt: the lightgcn format needs it")
        texts = files
    texts.sort(key=lambda each: _given(each) or 0)
    options: dict[str, sql.Option] = {
        "delim": "\n",
        "quote": "",
        "escape": "",
        "header": False,
        "max_line_size": LINE_BYTES,
        "buffer_size": 2 * LINE_BYTES,
    }
    parts = [
        f"""SELECT words[1] AS raw_user, unnest(words[2:]) AS raw_item,
            {_given(each) or 0}::TINYINT AS given
        FROM (SELECT string_split_regex(trim(line), '\\s+') AS words
              FROM {sql.csv(connection, [each], ["line"], options)} WHERE trim(line) <> '')"""
        for each in texts
    ]
    names = tuple(
        dict.fromkeys(("train", "validation", "test")[_given(each) or 0] for each in texts)
    )
    given = names if len(names) > 1 else ()

    def select(id_of: Callable[[str], str]) -> str:
        return (
            f"SELECT {id_of('raw_user')} AS raw_user, {id_of('raw_item')} AS raw_item, "
            f"NULL::DOUBLE AS rating, NULL::BIGINT AS timestamp, "
            f"{'given' if given else 'NULL::TINYINT AS given'} FROM ({' UNION ALL '.join(parts)})"
        )

    source = Source(
        format="lightgcn",
        select=select(lambda word: f"CASE WHEN NOT {null_text(word)} THEN {word} END"),
        as_written=select(lambda word: word),
        given=given,
        has_rating=False,
        has_timestamp=False,
        columns={},
    )
    return source, texts


def _given(file_name: str) -> int | None:
    """The split that LightGCN's file is of: `train.txt`, `test.txt.gz`."""
    return GIVEN.get(Path(file_name).name.split(".")[0])


def _recbole(
    connection: duckdb.DuckDBPyConnection, path: str, files: list[str], columns: Columns
) -> tuple[Source, list[str]]:
    """RecBole's atomic files: NAME.inter (or NAME.train.inter ...), NAME.item, NAME.user."""
    inter = [each for each in files if suffix_of(each) == ".inter"]
    if not inter:
        raise Mistake(f"{path} has no .inter file: the recbole format needs one")
    datasets = sorted({_dataset_of(each) for each in inter})
    if len(datasets) > 1:
        names = " and ".join(Path(each).name for each in datasets)
        raise Mistake(f"{path} holds several datasets, {names}: name one's .inter file")
    source = _table(connection, path, "recbole", inter, columns)
    neighbours = beside(inter[0])
    known = {which: name.split(":")[0] for which, name in source.columns.items() if name}
    own_names = Columns(known={**columns.known, **known})
    sides: dict[str, SideTable | None] = {}
    notes: list[str] = []
    for which, suffix in (("item", ".item"), ("user", ".user")):
        found = [each for each in neighbours if suffix_of(each) == suffix]
        own = [each for each in found if _dataset_of(each) == datasets[0]]
        sides[which] = (
            side_table(connection, "recbole", own, own[0], which, own_names) if own else None
        )
        if found and not own:
            names = ", ".join(Path(each).name for each in found)
            notes.append(
                f"not read: {names}, which is of another dataset; name it by --{which}s if it "
                "belongs here"
            )
    read = [each for each in files if suffix_of(each) in (".inter", ".item", ".user")]
    notes = [*source.notes, *notes]
    source = replace(source, items=sides["item"], users=sides["user"], notes=tuple(notes))
    return source, read


def _dataset_of(file_name: str) -> str:
    """Folder and NAME of an atomic file, without what names its split."""
    path = Path(file_name)
    name = path.name[: path.name.lower().rindex(suffix_of(file_name))]
    stem, _, last = name.rpartition(".")
    return str(path.with_name(stem if last in GIVEN and stem else name))


def _movielens(
    connection: duckdb.DuckDBPyConnection, path: str, files: list[str]
) -> tuple[Source, list[str]]:
    """ratings.dat, movies.dat and users.dat with `::` between columns, in Latin-1."""
    ratings = [each for each in files if Path(each).name == "ratings.dat"]
    if len(ratings) != 1:
        raise Mistake(
            f"{path} has {len(ratings) or 'no'} ratings.dat: the movielens format needs one"
        )
    there = {Path(each).name: each for each in beside(ratings[0])}

    def select(nulls: bool) -> str:
        return (
            "SELECT user_id AS raw_user, item_id AS raw_item, rating, timestamp, "
            f"NULL::TINYINT AS given FROM {_dat(connection, ratings[0], nulls)}"
        )

    def side(name: str, kinds: dict[str, Kind]) -> SideTable | None:
        return _dat_side(connection, there[name], kinds) if name in there else None

    source = Source(
        format="movielens",
        select=select(True),
        as_written=select(False),
        given=(),
        has_rating=True,
        has_timestamp=True,
        columns={
            "user": "user_id",
            "item": "item_id",
            "rating": "rating",
            "timestamp": "timestamp",
        },
        items=side("movies.dat", {"title": Kind("text"), "genres": Kind("multi", "|")}),
        users=side("users.dat", dict.fromkeys(DAT_COLUMNS["users.dat"][1:], Kind("text"))),
    )
    return source, [each for each in files if Path(each).name in DAT_COLUMNS]


def _dat(connection: duckdb.DuckDBPyConnection, file: str, nulls: bool) -> str:
    """SQL after FROM that reads a MovieLens file."""
    options: dict[str, sql.Option] = {
        "delim": "::",
        "quote": "",
        "escape": "",
        "header": False,
        "encoding": "latin-1",
    }
    if nulls:
        options |= nulls_told("::")
    return sql.csv(connection, [file], DAT_COLUMNS[Path(file).name], options)


def _dat_side(
    connection: duckdb.DuckDBPyConnection, file: str, kinds: dict[str, Kind]
) -> SideTable:
    id_column = DAT_COLUMNS[Path(file).name][0]
    return SideTable(
        side_select(id_column, {each: each for each in kinds}, _dat(connection, file, False)),
        side_select(id_column, {}, _dat(connection, file, True)),
        id_column,
        kinds,
        file,
    )


def _table(
    connection: duckdb.DuckDBPyConnection,
    path: str,
    format: str,
    files: list[str],
    columns: Columns,
) -> Source:
    """Interactions in columns: Parquet, CSV, TSV, or RecBole's .inter files."""
    by_split = given_splits(files) or {"": files}
    tables = {split: Table(connection, format, those, path) for split, those in by_split.items()}
    used = {split: _used_columns(table, columns) for split, table in tables.items()}

    def select(split: str, nulls: bool, those: list[str] | None = None) -> str:
        table, names = tables[split], used[split]
        values = {which: table.value(column) for which, column in names.items()}
        return (
            f"SELECT {values['user']} AS raw_user, {values['item']} AS raw_item, "
            f"{values['rating']} AS rating, {values['timestamp']} AS timestamp, "
            f"{sql.literal(GIVEN[split] if split else None)}::TINYINT AS given "
            f"FROM {table.relation(nulls, those)}"
        )

    split_of = {each: split for split, those in by_split.items() for each in those}
    names = used[next(iter(used))]
    for split, others in used.items():
        for which, column in others.items():
            if (column is None) != (names[which] is None):
                raise Mistake(
                    f"{path}: not all of the files named {' and '.join(used)} have a column of "
                    f"{which}s ({split}: {column}): add it, or name the column in all"
                )
    return Source(
        format=format,
        select=" UNION ALL ".join(select(split, True) for split in by_split),
        as_written=" UNION ALL ".join(select(split, False) for split in by_split),
        files=tuple(split_of),
        select_of=lambda file: select(split_of[file], True, [file]),
        given=tuple(each for each in by_split if each),
        has_rating=names["rating"] is not None,
        has_timestamp=names["timestamp"] is not None,
        columns=names,
        notes=tuple(note for table in tables.values() for note in table.notes),
    )


def _used_columns(table: Table, columns: Columns) -> dict[str, str | None]:
    """Columns of users, items, ratings and times, by what they hold."""
    used: dict[str, str | None] = {}
    for which, wanted, names in (
        ("user", columns.user, USER_NAMES),
        ("item", columns.item, ITEM_NAMES),
        ("rating", columns.rating, RATING_NAMES),
        ("timestamp", columns.timestamp, TIMESTAMP_NAMES),
    ):
        find = required if which in ("user", "item") else resolve
        usual = columns.usual(which, names)
        used[which] = find(wanted, table.types, usual, f"--{which}-column", table.label)
    if used["user"] == used["item"]:
        raise Mistake(f"--user-column and --item-column are both {used['user']!r}")
    return used
