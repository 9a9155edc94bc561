"""MovieLens' .dat files."""

from __future__ import annotations

from pathlib import Path

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.kinds import Kind
from trainer.sources.side_tables import side_select
from trainer.sources.sources import SideTable, Source, beside
from trainer.sources.text_files import nulls_told

DAT_COLUMNS = {
    "ratings.dat": ("user_id", "item_id", "rating", "timestamp"),
    "movies.dat": ("item_id", "title", "genres"),
    "users.dat": ("user_id", "gender", "age", "occupation", "zip_code"),
}


def movielens(
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
