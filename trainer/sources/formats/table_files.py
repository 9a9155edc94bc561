"""Sources of named columns: Parquet, CSV, TSV, and other formats' files of interactions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.columns import Columns, Table, required, resolve
from trainer.sources.kinds import Kind
from trainer.sources.row_columns import side_of_rows
from trainer.sources.sources import (
    GIVEN,
    ITEM_NAMES,
    RATING_NAMES,
    TIMESTAMP_NAMES,
    USER_NAMES,
    SideTable,
    Source,
    given_splits,
)


class Columnar(Protocol):
    """Files of columns, as SQL."""

    types: dict[str, str]
    """DuckDB's types by column name."""
    label: str
    """How messages call the files."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how they are read."""

    def relation(self, nulls: bool, files: list[str] | None = None) -> str:
        """SQL after FROM, of all or some of the files. nulls: in text, what stands for a missing
        value is NULL."""

    def value(self, column: str | None) -> str:
        """SQL of a column's value; NULL for None."""

    def type_of(self, column: str) -> str:
        """The type of `value`."""

    def kind_of(self, column: str) -> Kind:
        """How it is read as an attribute."""


def table_source(
    connection: duckdb.DuckDBPyConnection,
    path: str,
    format: str,
    files: list[str],
    columns: Columns,
    open_table: Callable[[duckdb.DuckDBPyConnection, str, list[str], str], Columnar] = Table,
) -> Source:
    """Interactions in columns: Parquet, CSV, TSV, RecBole's .inter, or what `open_table` reads."""
    by_split = given_splits(files) or {"": files}
    tables = {
        split: open_table(connection, format, those, path) for split, those in by_split.items()
    }
    used = {split: _used_columns(table, columns) for split, table in tables.items()}

    def select(split: str, nulls: bool, those: list[str] | None = None) -> str:
        table, names = tables[split], used[split]
        values = {which: table.value(column) for which, column in names.items()}
        more = "".join(
            f", {table.value(column)} AS {which}"
            for which, column in names.items()
            if which in ("event", "weight") and column is not None
        )
        more += "".join(
            f", {table.value(_named(name, table))} AS x{place}"
            for place, name in enumerate(columns.context)
        )
        return (
            f"SELECT {values['user']} AS raw_user, {values['item']} AS raw_item, "
            f"{values['rating']} AS rating, {values['timestamp']} AS timestamp, "
            f"{sql.literal(GIVEN[split] if split else None)}::TINYINT AS given{more} "
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
    first = tables[next(iter(tables))]
    found = {name: _named(name, first) for name in columns.context}
    context = {name.split(":")[0]: first.kind_of(column) for name, column in found.items()}
    sides = {
        which: _of_rows(which, wanted, list(tables.values()), list(used.values()), columns.context)
        for which, wanted in (("item", columns.of_items), ("user", columns.of_users))
        if wanted
    }
    repeated = {name for side in sides.values() for name in side.kinds}
    read = {*names.values(), *found.values(), *repeated}
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
        context=context,
        items=sides.get("item"),
        users=sides.get("user"),
        unused=tuple(name for name in first.types if name not in read),
        notes=tuple(note for table in tables.values() for note in table.notes),
    )


def _used_columns(table: Columnar, columns: Columns) -> dict[str, str | None]:
    """Columns of users, items, ratings and times, by what they hold."""
    used: dict[str, str | None] = {}
    for which, wanted, names in (
        ("user", columns.user, USER_NAMES),
        ("item", columns.item, ITEM_NAMES),
        ("rating", columns.rating, RATING_NAMES),
        ("timestamp", columns.timestamp, TIMESTAMP_NAMES),
    ):
        usual = columns.usual(which, names)
        used[which] = resolve(wanted, table.types, usual, f"--{which}-column", table.label)
    unnamed = [which for which in ("user", "item") if used[which] is None]
    if unnamed:
        times = "" if used["timestamp"] else ", and that of times with --timestamp-column"
        of, flags = (
            word.join(form.format(which) for which in unnamed)
            for word, form in ((" nor of ", "{}s"), (" and ", "--{}-column"))
        )
        raise Mistake(
            f"{table.label} has no column with a usual name of {of}: name it with {flags}{times}. "
            f"There are: {', '.join(table.types)}"
        )
    if used["user"] == used["item"]:
        raise Mistake(f"--user-column and --item-column are both {used['user']!r}")
    for which, wanted in (("event", columns.event), ("weight", columns.weight)):
        flag = f"--{which}-column"
        used[which] = (
            None if wanted is None else required(wanted, table.types, (), flag, table.label)
        )
    if used["event"] is not None and columns.rating is None:
        used["rating"] = None  # the kinds say what is liked
    for name in columns.context:
        column = _named(name, table)
        if column in used.values():
            which = next(each for each, taken in used.items() if taken == column)
            raise Mistake(f"--context {name}: the column is that of the {which}s: leave it out")
    return used


def _of_rows(
    which: str,
    wanted: tuple[str, ...],
    tables: list[Columnar],
    used: list[dict[str, str | None]],
    context: tuple[str, ...],
) -> SideTable:
    """The side table of columns that rows repeat; they have no other role."""
    flag, first = f"--{which}-columns", tables[0]
    kinds = {}
    for name in wanted:
        column = _named(name, first, flag)
        taken = next((role for role, each in used[0].items() if each == column), None)
        taken = "context" if name in context else taken
        if taken is not None:
            raise Mistake(f"{flag} {name}: the column is that of the {taken}s: leave it out")
        if column in kinds:
            raise Mistake(f"{flag} names {name} twice")
        kinds[column] = first.kind_of(column)
    selects = []
    for table, names in zip(tables, used, strict=True):
        values = "".join(
            f", {table.value(_named(name, table, flag))} AS c{place}"
            for place, name in enumerate(kinds)
        )
        key, relation = table.value(names[which]), table.relation(nulls=True)
        selects.append(f"SELECT {key} AS raw{values} FROM {relation}")
    id_column = names[which]
    assert id_column is not None
    return side_of_rows(" UNION ALL ".join(selects), first.label, which, id_column, kinds)


def _named(name: str, table: Columnar, flag: str = "--context") -> str:
    """A column, as the table calls it."""
    return required(name, table.types, (), flag, table.label)
