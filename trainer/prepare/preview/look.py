"""`tandem prepare SOURCE --look`: what a source holds and how it would be read; makes nothing.

Reads the first million rows, so that it takes seconds whatever the source's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet, say
from trainer.prepare.partitions.splits import SplitRule
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.prepare.preview.guesses import guessed
from trainer.prepare.preview.look_columns import Look, limit_of
from trainer.prepare.preview.look_facts import show_facts
from trainer.prepare.preview.look_rows import LookedRows
from trainer.prepare.preview.repeated_columns import Repeated, likely_title, repeated
from trainer.prepare.split_choice import DEFAULT_SHARE, choose_rule
from trainer.sources import sql
from trainer.sources.columns import Table
from trainer.sources.formats.every import read_source, recognise
from trainer.sources.hub import files_at
from trainer.sources.lakes import LAKES, lake_at
from trainer.sources.side_tables import SideFiles
from trainer.sources.sources import Source, title_column
from trainer.sources.text_files import readable, suffix_of


def look(arguments: PrepareArguments) -> None:
    """Print columns, roles, times, repeats, splits, and the command to go on with."""
    resources = sql.Resources(arguments.memory_limit, arguments.threads, "")
    with closing(sql.connect(resources)) as connection, sql.faults(f"reading {arguments.source}"):
        source, arguments = _read(connection, arguments)
        found = _show_columns(connection, arguments, source)
        for note in source.all_notes:
            say(note)
        with readable(arguments.source, source.format):
            is_typed = source.format in ("parquet", *LAKES)
            limit = limit_of(connection, is_typed, f"({source.select})")
            columns = ["raw_user", "raw_item", "rating", "timestamp"]
            columns += ["event"] if source.has_events else []
            columns += ["weight"] if source.has_weight else []
            connection.execute(
                f"CREATE TABLE looked AS SELECT {', '.join(columns)} FROM ({source.select}){limit}"
            )
        thresholds, looked = show_facts(connection, arguments, source)
        keep = arguments.duplicates or ("last" if source.has_rating else "first")
        _show_splits(source, looked.one_a_pair(keep), choose_rule(arguments, source, thresholds))
    say("to go on:", command=_command(found.taken(arguments)))


def _read(
    connection: duckdb.DuckDBPyConnection, arguments: PrepareArguments
) -> tuple[Source, PrepareArguments]:
    """The source, and the arguments with columns that were guessed, which is said.

    Raises:
        Mistake: where it cannot be read, once its columns are shown.
    """
    while True:
        try:
            side_files = SideFiles(arguments.items, arguments.users)
            columns = arguments.columns({})
            format = arguments.format
            return read_source(connection, arguments.source, format, columns, side_files), arguments
        except Mistake as mistake:
            table = _interactions(connection, arguments)
            guess = None if table is None else guessed(connection, table, arguments)
            if guess is None:  # also where the columns have been named by one
                _show_columns(connection, arguments, None)
                raise Mistake(f"it cannot be prepared like this yet: {mistake}") from mistake
            arguments, told = guess
            say(told)


def _show_columns(
    connection: duckdb.DuckDBPyConnection, arguments: PrepareArguments, source: Source | None
) -> Repeated:
    """A line a column of each table, where the format has columns with names; what describes items
    and users.

    source: None where the arguments do not suffice to read it.
    """
    table = _interactions(connection, arguments)
    types, found = arguments.column_types(), Repeated()
    if table is not None:
        roles = {}
        if source is not None:
            roles = {name: role for role, name in source.columns.items() if name is not None}
        roles |= {
            name: "context" for name in table.types if name.split(":")[0] in arguments.context
        }
        roles |= _described(source)
        unread = Look(table, "columns_looked", roles, (), types.context).show(connection)
        if unread and source is not None:
            found = repeated(connection, table, source, unread, arguments)
        for line in found.told():
            say(line)
        unread = [name for name in unread if name not in (*found.item, *found.user, *found.times)]
        if unread and source is not None:
            say(
                f"nothing reads {', '.join(unread)}. What is known when recommendations are asked "
                "for (the hour, the device) is a feature with --context NAME; what is known "
                "only afterwards is not"
            )
    return found if source is None else _show_sides(connection, arguments, source, found)


def _show_sides(
    connection: duckdb.DuckDBPyConnection,
    arguments: PrepareArguments,
    source: Source,
    found: Repeated,
) -> Repeated:
    """The tables of items and users; what was found, with a title of the items."""
    types = arguments.column_types()
    title = title_column(source.items, arguments.columns({}))
    for side, given in (("item", source.items), ("user", source.users)):
        if given is None or given.table is None:
            continue
        roles = {given.id_column: f"{side} id"}
        if side == "item" and title is not None:
            roles[title] = "title"
        named = getattr(arguments, f"{side}_attributes")
        Look(
            given.table, f"{side}s_looked", roles, named, types.of(side), f"--{side}s {given.label}"
        ).show(connection)
        if side == "item" and title is None:
            names = [name for name in given.table.types if name not in roles]
            limit = limit_of(connection, given.table.is_typed, given.table.relation(nulls=True))
            with readable(given.label, given.table.format):
                title = likely_title(connection, given.table, given.id_column, names, limit)
            found = replace(found, title=title or found.title)
            if title is not None:
                say(
                    f"{title}: nearly each item has one of its own, as titles are. --title-column, "
                    "in the command below, shows it beside ids"
                )
    return found


def _described(source: Source | None) -> dict[str, str]:
    """Roles of the columns that --item-columns and --user-columns name."""
    sides = {} if source is None else {"item": source.items, "user": source.users}
    return {
        name: f"of the {side}"
        for side, given in sides.items()
        if given is not None and given.varying is not None
        for name in given.kinds
    }


def _interactions(
    connection: duckdb.DuckDBPyConnection, arguments: PrepareArguments
) -> Table | None:
    """The interactions as a table, where they have columns with names."""
    lake = lake_at(arguments.source)
    files = [arguments.source] if lake else files_at(connection, arguments.source)
    named = {arguments.items, arguments.users}
    files = [file for file in files if file not in named]
    kind = lake or arguments.format or recognise(arguments.source, files)
    if kind == "recbole":
        files = [file for file in files if suffix_of(file) == ".inter"]
    elif kind in ("lightgcn", "movielens"):
        return None
    return Table(connection, kind, files, arguments.source) if files else None


def _show_splits(source: Source, looked: LookedRows, chosen: SplitRule) -> None:
    """What each rule would hold out for the test, of the rows looked at."""
    numbers = ("rows for test", "users asked", "new items in it")
    sheet = Sheet("split", *numbers, numbers=numbers, whole=("split",))
    rules = ("leave-last-out", "time", "random") if source.has_timestamp else ("random",)
    for rule in rules:
        found = looked.held_out(rule, chosen.test_share, DEFAULT_SHARE)
        name = f"{rule} (taken)" if rule == chosen.rule else rule
        sheet.add(name, f"{found.rows:,}", f"{found.users:,}", f"{100 * found.new_share:.1f} %")
    sheet.print()
    if chosen.rule == "given":
        say(f"the files name their splits ({', '.join(source.given)}), which are taken")


def _command(arguments: PrepareArguments) -> list[str]:
    """The command that prepares it so."""
    words: list[str] = ["tandem", "prepare", arguments.source, arguments.out or _folder(arguments)]
    given: Sequence[tuple[str, Any]] = [
        (name, value)
        for name, value in vars(arguments).items()
        if name in _DEFAULTS and value != _DEFAULTS[name] and name not in ("source", "out", "look")
    ]
    for name, value in given:
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        elif str(value).startswith("-"):
            words.append(f"{flag}={value}")
        else:
            words += [flag, str(value)]
    return words


def _folder(arguments: PrepareArguments) -> str:
    name = Path(arguments.source.rstrip("/")).stem.split(".")[0]
    made = f"{name.strip('*?') or 'data'}-prepared"
    return f"./{made}" if made.startswith("-") else made


_DEFAULTS = vars(PrepareArguments("source", "out"))
