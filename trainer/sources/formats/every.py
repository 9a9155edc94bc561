"""The formats there are: their names, by what they are recognised, and who reads them.

A new one is a file here with a function that returns a `Source` and the files it read, and three
lines below: its name, what it is recognised by, its case.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.columns import Columns
from trainer.sources.formats.lightgcn import lightgcn
from trainer.sources.formats.movielens import movielens
from trainer.sources.formats.recbole import recbole
from trainer.sources.formats.table_files import table_source
from trainer.sources.hub import files_at
from trainer.sources.lakes import LAKES, LakeFormat, check_no_lake, lake_at
from trainer.sources.side_tables import SideFiles, with_side_files
from trainer.sources.sources import Source, unread
from trainer.sources.text_files import check_packing, suffix_of

Format = Literal["lightgcn", "recbole", "parquet", "csv", "movielens", "delta", "iceberg"]
FORMATS: tuple[Format, ...] = get_args(Format)


def recognise(source: str, files: list[str]) -> Format:
    """The format of files by their names."""
    names = [Path(each).name for each in files]
    suffixes = {suffix_of(each) for each in names}
    if ".inter" in suffixes:
        return "recbole"
    if "ratings.dat" in names:
        return "movielens"
    if "train.txt" in names or (suffixes == {".txt"} and len(names) == 1):
        return "lightgcn"
    if ".parquet" in suffixes:
        return "parquet"
    if suffixes & {".csv", ".tsv"}:
        return "csv"
    for each in files:
        check_packing(each)
    raise Mistake(
        f"the format of {source} is not recognised by its files ({', '.join(names[:5])}): "
        f"say --format {'|'.join(FORMATS)}"
    )


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
    lake, files = _files_of(connection, path, format, side)
    match lake or format or recognise(path, files):
        case "delta" | "iceberg" as kind:
            if lake is None:
                raise Mistake(f"{path} is no {kind} table: name the folder that holds its log")
            source, read = table_source(connection, path, kind, files, columns), files
        case "lightgcn":
            source, read = lightgcn(connection, path, files)
        case "recbole":
            source, read = recbole(connection, path, files, columns)
        case "movielens":
            source, read = movielens(connection, path, files)
        case "csv":
            read = [each for each in files if suffix_of(each) in (".csv", ".tsv")] or files
            source = table_source(connection, path, "csv", read, columns)
        case _:
            read = [each for each in files if suffix_of(each) == ".parquet"] or files
            source = table_source(connection, path, "parquet", read, columns)
    for flag, wanted in (
        ("--event-column", columns.event),
        ("--weight-column", columns.weight),
        ("--context", columns.context),
        ("--item-columns", columns.of_items),
        ("--user-columns", columns.of_users),
    ):
        if wanted and source.format in ("lightgcn", "movielens"):
            raise Mistake(
                f"{flag} {wanted if isinstance(wanted, str) else wanted[0]}: the {source.format} "
                "format has no such column: write the rows as CSV or Parquet"
            )
    source = replace(source, label=path, notes=(*source.notes, *unread(files, read)))
    return with_side_files(connection, source, columns, side)


def _files_of(
    connection: duckdb.DuckDBPyConnection, path: str, format: str | None, side: SideFiles
) -> tuple[LakeFormat | None, list[str]]:
    """The kind of table that a folder is, if any, and the files of interactions."""
    lake = lake_at(path)
    if lake is not None:
        if format not in (None, lake):
            raise Mistake(f"--format {format}, but {path} is {LAKES[lake].words}: leave it out")
        return lake, [path]
    named = {"--items": side.items, "--users": side.users}
    aside = [
        each
        for flag, given in named.items()
        if given and lake_at(given) is None
        for each in files_at(connection, given, flag)
    ]
    files = [each for each in files_at(connection, path) if each not in aside]
    if not files:
        raise Mistake(f"{path} holds no interactions besides --items and --users")
    check_no_lake(path, files)
    return None, files
