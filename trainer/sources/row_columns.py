"""Columns of the interactions that describe the item or the user, which each row repeats.

user  item  title          price        --item-columns title price
u1    s7    Night Train    0.99    ->   item  title        price
u2    s7    Night Train    0.99         s7    Night Train  0.99
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.kinds import Kind
from trainer.sources.sources import SideTable

MOST_VARYING = 0.05
"""Of the items, those that a column may have several values for: slips of a keyboard."""


def side_of_rows(
    rows: str, label: str, which: str, id_column: str, kinds: Mapping[str, Kind]
) -> SideTable:
    """A side table of what the rows repeat; of several values of an item the smallest.

    Args:
        rows: SELECT of `raw` and the columns as c0, c1, ..., NULL where a text says that there is
            none.
        kinds: of these columns, in order.
    """
    names = [f"c{place}" for place in range(len(kinds))]
    least = "".join(f", min({name}) AS {name}" for name in names)
    found = f"FROM ({rows}) WHERE raw IS NOT NULL GROUP BY raw ORDER BY raw"
    return SideTable(
        select=f"SELECT raw{least} {found}",
        select_ids=f"SELECT raw {found}",
        id_column=id_column,
        kinds=dict(kinds),
        label=f"--{which}-columns of {label}",
        varying=varying(rows, names),
    )


def varying(rows: str, names: Sequence[str]) -> str:
    """SELECT of how many ids have several rows, how many have several values of each column, and
    an id that has."""
    differs = "".join(f", min({name}) IS DISTINCT FROM max({name}) AS d_{name}" for name in names)
    counted = "".join(f", count(*) FILTER (d_{name}), min(raw) FILTER (d_{name})" for name in names)
    return (
        f"SELECT count(*){counted} FROM (SELECT raw{differs} FROM ({rows}) "
        "WHERE raw IS NOT NULL GROUP BY raw HAVING count(*) > 1)"
    )


def check_varying(
    connection: duckdb.DuckDBPyConnection, table: SideTable, which: str
) -> tuple[str, ...]:
    """Notes on columns that a few items have several values of.

    Raises:
        Mistake: for one that many have: it says nothing of the item.
    """
    if table.varying is None:
        return ()
    ids, *found = sql.one(connection, table.varying)
    notes = []
    for name, several, one in zip(table.kinds, found[::2], found[1::2], strict=True):
        if several > MOST_VARYING * ids:
            raise Mistake(
                f"--{which}-columns {name}: {several:,} of {ids:,} {which}s have several values of "
                f"it, for example {one!r}: it says nothing of the {which}. What is known when "
                "recommendations are asked for is a feature with --context"
            )
        if several:
            notes.append(
                f"{name}: {several:,} {which}s have several values, for example {one!r}; the "
                "smallest is taken"
            )
    return tuple(notes)
