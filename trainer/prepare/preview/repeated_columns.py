"""Columns of interactions that say the same wherever an item, or a user, is met."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

import duckdb

from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.prepare.preview.look_columns import limit_of
from trainer.sources import sql
from trainer.sources.columns import Table
from trainer.sources.row_columns import MOST_VARYING, varying
from trainer.sources.sources import TITLE_NAMES, Source
from trainer.sources.text_files import readable
from trainer.sources.times import unit_of_moment

LEAST_IDS = 5
"""Of fewer that are met twice, nothing is concluded."""
NEARLY_ALL = 0.8
"""Share of the items that a title is different for."""


@dataclass(frozen=True)
class Repeated:
    """What was found of the columns that nothing reads."""

    item: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    title: str | None = None
    """Of the items' columns the one that tells them apart, where its name does not say it."""
    times: tuple[str, ...] = ()
    """Where no column of times is known, those that may be it."""

    def told(self) -> list[str]:
        """A sentence for each side, and for what may be times."""
        asked = [
            f"{name} looks like times: look again with --timestamp-column {shlex.quote(name)}, and "
            "histories have an order"
            for name in self.times
        ]
        return asked + [
            f"{', '.join(names)}: the same wherever {one} is met. --{side}-columns, in the command "
            f"below, makes them {becomes}"
            for side, names, one, becomes in (
                ("item", self.item, "an item", "its title and attributes"),
                ("user", self.user, "a user", "attributes of the user"),
            )
            if names
        ]

    def taken(self, arguments: PrepareArguments) -> PrepareArguments:
        """The arguments with these columns."""
        return replace(
            arguments,
            item_columns=arguments.item_columns + self.item,
            user_columns=arguments.user_columns + self.user,
            title_column=arguments.title_column or self.title,
        )


def repeated(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    source: Source,
    unread: Sequence[str],
    arguments: PrepareArguments,
) -> Repeated:
    """Those of `unread` that describe the item or the user, by the rows looked at."""
    limit = limit_of(connection, table.is_typed, table.relation(nulls=True))
    left, found, times = list(unread), dict[str, tuple[str, ...]](), tuple[str, ...]()
    if not source.has_timestamp and left:
        with readable(table.label, table.format):
            times = likely_times(connection, table, left, limit)
        left = [name for name in left if name not in times]
    for side, file in (("item", arguments.items), ("user", arguments.users)):
        column = source.columns[side]
        found[side] = ()
        if file is None and column is not None and left:
            with readable(table.label, table.format):
                found[side] = _constant(connection, table, column, left, limit)
        left = [name for name in left if name not in found[side]]
    title = None
    if found["item"] and arguments.title_column is None:
        title = likely_title(connection, table, str(source.columns["item"]), found["item"], limit)
    return Repeated(found["item"], found["user"], title, times)


def _constant(
    connection: duckdb.DuckDBPyConnection, table: Table, key: str, names: Sequence[str], limit: str
) -> tuple[str, ...]:
    """Columns that ids with several rows have one value of; a column of one value says nothing."""
    places = [f"c{place}" for place in range(len(names))]
    rows = rows_of(table, key, names, limit)
    ids, *counted = sql.one(connection, varying(rows, places))
    if ids < LEAST_IDS:
        return ()
    many = [f"approx_count_distinct({place}) > 1" for place in places]
    several = sql.one(connection, f"SELECT {', '.join(many)} FROM ({rows})")
    return tuple(
        name
        for name, varies, has_several in zip(names, counted[::2], several, strict=True)
        if varies <= MOST_VARYING * ids and has_several
    )


def likely_times(
    connection: duckdb.DuckDBPyConnection, table: Table, names: Sequence[str], limit: str
) -> tuple[str, ...]:
    """Columns all of whose values are dates, or numbers that lie where moments do."""
    asked = ", ".join(
        f"count({v}), count(DISTINCT {v}) > 1, count(TRY_CAST({v} AS TIMESTAMP)), "
        f"count(TRY_CAST({v} AS BIGINT)), median(TRY_CAST({v} AS BIGINT))::BIGINT"
        for v in (f"c{place}::VARCHAR" for place in range(len(names)))
    )
    rows = rows_of(table, names[0], names, limit)
    found = sql.one(connection, f"SELECT {asked} FROM ({rows})")
    likely = []
    for name, count, varies, dates, numbers, middle in zip(
        names, *(found[at::5] for at in range(5)), strict=True
    ):
        is_moment = numbers == count and middle is not None and unit_of_moment(middle) is not None
        if count and varies and (dates == count or is_moment):
            likely.append(name)
    return tuple(likely)


def likely_title(
    connection: duckdb.DuckDBPyConnection, table: Table, key: str, names: Sequence[str], limit: str
) -> str | None:
    """The text that nearly each item has one of its own of, if it is the only one and no column is
    called so."""
    if any(name.lower() in TITLE_NAMES for name in names):
        return None
    texts = [name for name in names if table.type_of(name) == "VARCHAR"]
    if not texts:
        return None
    asked = ", ".join(
        f"approx_count_distinct(c{place}), "
        f"count(*) FILTER (TRY_CAST(c{place} AS DOUBLE) IS NOT NULL OR "
        f"TRY_CAST(c{place} AS TIMESTAMP) IS NOT NULL)"
        for place in range(len(texts))
    )
    rows = rows_of(table, key, texts, limit)
    items, *found = sql.one(connection, f"SELECT approx_count_distinct(raw), {asked} FROM ({rows})")
    telling = [
        name
        for name, distinct, numbers in zip(texts, found[::2], found[1::2], strict=True)
        if distinct >= NEARLY_ALL * items and not numbers
    ]
    return telling[0] if len(telling) == 1 else None


def rows_of(table: Table, key: str, names: Sequence[str], limit: str) -> str:
    """SQL of a table's rows: the value of `key` as raw, of `names` as c0, c1, ..."""
    values = "".join(f", {table.value(name)} AS c{place}" for place, name in enumerate(names))
    relation = f"SELECT * FROM {table.relation(nulls=True)}{limit}"
    return f"SELECT {table.value(key)} AS raw{values} FROM ({relation})"
