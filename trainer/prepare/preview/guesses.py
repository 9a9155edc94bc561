"""Which columns may hold users, items and times, where none is called as they usually are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import duckdb

from trainer.base.mistake import Mistake
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.prepare.preview.look_columns import limit_of
from trainer.prepare.preview.repeated_columns import likely_times, rows_of
from trainer.sources import sql
from trainer.sources.columns import Table, resolve
from trainer.sources.side_tables import side_files
from trainer.sources.sources import ITEM_NAMES, RATING_NAMES, TIMESTAMP_NAMES, USER_NAMES
from trainer.sources.text_files import readable

WORDS = {
    "user": "user customer client member account visitor person profile buyer reader listener "
    "viewer subscriber session kunde kunden cliente utilisateur usuario",
    "item": "item product article sku track song movie film book isbn video content page offer "
    "listing game artikel produkt produit producto articulo",
}
"""What a column's name may contain."""
MOST_DIFFERENT = 0.95
"""Share of the rows: an id is met again."""
NO_IDS = ("FLOAT", "DOUBLE", "DECIMAL", "BOOL", "DATE", "TIME", "INTERVAL", "[", "STRUCT", "MAP")


def guessed(
    connection: duckdb.DuckDBPyConnection, table: Table, arguments: PrepareArguments
) -> tuple[PrepareArguments, str] | None:
    """The arguments with the columns named that may be meant, and a sentence; None: no guess.

    A name that contains a usual word goes first, then one that the table of items or users shares,
    then the columns of the most ids, users before items.
    """
    columns = arguments.columns({})
    found = {
        "user": resolve(columns.user, table.types, USER_NAMES, "--user-column", table.label),
        "item": resolve(columns.item, table.types, ITEM_NAMES, "--item-column", table.label),
        "timestamp": resolve(
            columns.timestamp, table.types, TIMESTAMP_NAMES, "--timestamp-column", table.label
        ),
    }
    missing = [side for side in WORDS if found[side] is None]
    rating = resolve(columns.rating, table.types, RATING_NAMES, "--rating-column", table.label)
    others = (rating, columns.event, columns.weight, columns.title, *columns.context)
    taken = {*found.values(), *others, *columns.of_items, *columns.of_users}
    left = [name for name in table.types if not {name, name.split(":")[0]} & taken]
    if not missing or not left:
        return None
    limit = limit_of(connection, table.is_typed, table.relation(nulls=True))
    with readable(table.label, table.format):
        times = likely_times(connection, table, left, limit)
        ids = _ids(connection, table, [name for name in left if name not in times], limit)
    guesses = {}
    for side in missing:
        name = _named(ids, WORDS[side].split()) or _shared(connection, ids, arguments, side)
        if name is not None:
            guesses[side] = name
            ids.remove(name)
    for side in (each for each in missing if each not in guesses):
        if not ids:
            return None
        most = ids[: len(missing) - len(guesses)]
        guesses[side] = min(most, key=list(table.types).index)
        ids.remove(guesses[side])
    if found["timestamp"] is None and times and not arguments.in_order:
        guesses["timestamp"] = times[0]
    named: dict[str, Any] = {f"{side}_column": name for side, name in guesses.items()}
    kinds = {"user": "users", "item": "items", "timestamp": "times"}
    told = ", ".join(f"{name} for {kinds[side]}" for side, name in guesses.items())
    return replace(arguments, **named), (
        f"no column has a usual name of {' nor of '.join(kinds[side] for side in missing)}. What "
        f"follows takes {told}, a guess by names and values: if it is wrong, name them with "
        "--user-column, --item-column and --timestamp-column"
    )


def _ids(
    connection: duckdb.DuckDBPyConnection, table: Table, names: Sequence[str], limit: str
) -> list[str]:
    """Columns whose values may be ids, those of the most first."""
    names = [name for name in names if not any(word in table.types[name] for word in NO_IDS)]
    if not names:
        return []
    asked = ", ".join(
        f"count(DISTINCT c{place}), count(c{place}), count(*) FILTER "
        f"(TRY_CAST(c{place} AS DOUBLE) IS NOT NULL AND CAST(c{place} AS VARCHAR) LIKE '%.%')"
        for place in range(len(names))
    )
    rows_looked_at = rows_of(table, names[0], names, limit)
    found = sql.one(connection, f"SELECT {asked} FROM ({rows_looked_at})")
    counted = {
        name: distinct
        for name, distinct, rows, fractions in zip(
            names, found[::3], found[1::3], found[2::3], strict=True
        )
        if 1 < distinct <= MOST_DIFFERENT * rows and not fractions
    }
    return sorted(counted, key=lambda name: -counted[name])


def _named(ids: Sequence[str], words: Sequence[str]) -> str | None:
    return next((name for name in ids if any(word in name.lower() for word in words)), None)


def _shared(
    connection: duckdb.DuckDBPyConnection,
    ids: Sequence[str],
    arguments: PrepareArguments,
    side: str,
) -> str | None:
    """The first that the table of items or users has, too."""
    file = getattr(arguments, f"{side}s")
    if file is None:
        return None
    try:
        format, files = side_files(connection, file, side)
        there = Table(connection, format, files, file).types
    except Mistake:  # told when it is read in earnest
        return None
    return next((name for name in ids if name in there), None)
