"""`tandem prepare SOURCE --look`: what a source holds and how it would be read; makes nothing.

Reads the first million rows, so that it takes seconds whatever the source's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet, say
from trainer.prepare.features.event_kinds import parse_event_weights
from trainer.prepare.features.repeated_columns import Repeated, repeated
from trainer.prepare.look_columns import ROWS_LOOKED_AT, Look, limit_of
from trainer.prepare.look_rows import LookedRows
from trainer.prepare.partitions.splits import SplitRule
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.prepare.split_choice import DEFAULT_SHARE, choose_rule
from trainer.sources import sql
from trainer.sources.checks import Thresholds, check_ratings
from trainer.sources.columns import Table
from trainer.sources.formats.every import read_source, recognise
from trainer.sources.hub import files_at
from trainer.sources.lakes import LAKES, lake_at
from trainer.sources.side_tables import SideFiles
from trainer.sources.sources import Source, title_column
from trainer.sources.text_files import readable, suffix_of
from trainer.sources.times import A_SECOND, times_of, unit_of_moment

KINDS_SHOWN = 12


def look(arguments: PrepareArguments) -> None:
    """Print columns, roles, times, repeats, splits, and the command to go on with."""
    resources = sql.Resources(arguments.memory_limit, arguments.threads, "")
    with closing(sql.connect(resources)) as connection, sql.faults(f"reading {arguments.source}"):
        try:
            source = read_source(
                connection,
                arguments.source,
                arguments.format,
                arguments.columns({}),
                SideFiles(arguments.items, arguments.users),
            )
        except Mistake as mistake:
            _show_columns(connection, arguments, None)
            raise Mistake(f"it cannot be prepared like this yet: {mistake}") from mistake
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
        thresholds, looked = _show_facts(connection, arguments, source)
        keep = arguments.duplicates or ("last" if source.has_rating else "first")
        _show_splits(source, looked.one_a_pair(keep), choose_rule(arguments, source, thresholds))
    say("to go on:", command=_command(found.taken(arguments)))


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
    if source is None:
        return found
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
    return Table(connection, kind, files, arguments.source)


def _show_facts(
    connection: duckdb.DuckDBPyConnection, arguments: PrepareArguments, source: Source
) -> tuple[Thresholds | None, LookedRows]:
    """Print what the rows are; the thresholds of ratings, and the rows."""
    rows = sql.number(connection, "SELECT count(*) FROM looked")
    if not rows:
        raise Mistake(f"{arguments.source} is empty: it holds no interactions")
    times, moment = "none: histories have no order (--in-order if the rows stand in it)", "rowid"
    if source.has_timestamp and not source.in_order:
        times, moment = _times(connection, source)
    thresholds = None
    if source.has_rating:
        thresholds = check_ratings(
            connection,
            "looked",
            f"column {source.columns['rating']!r}",
            arguments.positive_threshold,
            arguments.dislike_threshold,
        )
    looked = LookedRows.read(connection, moment, thresholds)
    given = len(looked.user_E)
    facts = Sheet("", "", framed=False)
    which = "all" if rows < ROWS_LOOKED_AT else "the first"
    facts.add("looked at", f"{which} {rows:,} rows, read as {source.format}")
    a_user = f"{given / max(looked.users, 1):.1f} rows a user"
    facts.add("users, items", f"{looked.users:,}, {looked.items:,}: {a_user}")
    facts.add(
        "repeated user and item", f"{100 * (1 - looked.pairs / max(given, 1)):.1f} % of the rows"
    )
    if given < rows:
        facts.add("without user or item", f"{rows - given:,} rows (--drop-null-ids drops them)")
    if source.has_events:
        facts.add("kinds of events", _kinds(connection, arguments))
    if source.has_weight:
        facts.add("weights", _weights(connection))
    if thresholds is not None:
        facts.add("ratings", _ratings(connection, thresholds))
    facts.add("times", times)
    facts.print()
    return thresholds, looked


def _ratings(connection: duckdb.DuckDBPyConnection, found: Thresholds) -> str:
    rating = "TRY_CAST(rating AS DOUBLE)"
    low = "false" if found.dislike is None else f"{rating} <= {found.dislike}"
    liked, disliked, rows = sql.one(
        connection,
        f"""SELECT count(*) FILTER ({rating} >= {found.positive}), count(*) FILTER ({low}),
            count(*) FROM looked""",
    )
    low_words = "" if found.dislike is None else f", disliked up to {found.dislike:g}"
    return (
        f"liked from {found.positive:g} ({liked / rows:.0%}){low_words} ({disliked / rows:.0%}), "
        f"{(rows - liked - disliked) / rows:.0%} between, which are dropped"
    )


def _kinds(connection: duckdb.DuckDBPyConnection, arguments: PrepareArguments) -> str:
    """How many rows are of each kind, and what becomes of them."""
    counted = connection.execute(
        f"""SELECT nullif(trim(CAST(event AS VARCHAR)), '') AS name, sum(rows)::BIGINT AS rows
        FROM (SELECT event, count(*) AS rows FROM looked GROUP BY event)
        GROUP BY name ORDER BY rows DESC, name LIMIT {KINDS_SHOWN + 1}"""
    ).fetchall()
    rows = sql.number(connection, "SELECT count(*) FROM looked")
    given = parse_event_weights(arguments.event_weights)
    words = []
    for name, count in counted[:KINDS_SHOWN]:
        becomes = given.get(name, "--event-weights does not name it" if given else 1.0)
        told = f"weight {becomes:g}" if isinstance(becomes, float) else becomes
        words.append(
            f"missing {100 * count / rows:.1f} %"
            if name is None
            else f"{name} {100 * count / rows:.1f} % ({told})"
        )
    more = ", and more: is it the right column?" if len(counted) > KINDS_SHOWN else ""
    return ", ".join(words) + more


def _weights(connection: duckdb.DuckDBPyConnection) -> str:
    low, high, bad = sql.one(
        connection,
        """SELECT min(w), max(w), count(*) FILTER (w IS NULL OR NOT isfinite(w) OR w <= 0)
        FROM (SELECT TRY_CAST(weight AS DOUBLE) AS w FROM looked)""",
    )
    if low is None:
        return "none that can be read"
    wrong = f"; {bad:,} rows have none above 0" if bad else ""
    return f"{low:g} to {high:g}{wrong}"


def _times(connection: duckdb.DuckDBPyConnection, source: Source) -> tuple[str, str]:
    """What the times are, and SQL of a moment."""
    times = times_of(connection, "looked", f"column {source.columns['timestamp']!r}")
    moment = times.expression
    first, last, middle = sql.one(
        connection,
        f"SELECT min(m), max(m), median(m)::BIGINT FROM (SELECT {moment} AS m FROM looked)",
    )
    if first is None:
        return "none that can be read", moment
    unit = unit_of_moment(middle)
    if unit is None:
        words = f"{first:,} to {last:,}, in no unit of time that is known: their order counts"
        return words, moment
    days = (last - first) / A_SECOND[unit] / 86_400
    begin, end = (_date(each // A_SECOND[unit]) for each in (first, last))
    return f"{begin} to {end} UTC ({days:,.0f} days), in {unit}", moment


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


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
        else:
            words += [flag, str(value)]
    return words


def _folder(arguments: PrepareArguments) -> str:
    name = Path(arguments.source.rstrip("/")).stem.split(".")[0]
    return f"{name or 'data'}-prepared"


_DEFAULTS = vars(PrepareArguments("source", "out"))
