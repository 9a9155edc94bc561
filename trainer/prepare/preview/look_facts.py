"""What `prepare --look` says of rows: how many, kinds, weights, ratings, times."""

from __future__ import annotations

from datetime import UTC, datetime

import duckdb

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet
from trainer.prepare.features.event_kinds import parse_event_weights
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.prepare.preview.look_columns import ROWS_LOOKED_AT
from trainer.prepare.preview.look_rows import LookedRows
from trainer.sources import sql
from trainer.sources.checks import Thresholds, check_ratings
from trainer.sources.sources import Source
from trainer.sources.times import A_SECOND, times_of, unit_of_moment

KINDS_SHOWN = 12


def show_facts(
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
    loved, bad, between = (
        f"{100 * count / rows:.0f} %" for count in (liked, disliked, rows - liked - disliked)
    )
    return (
        f"liked from {found.positive:g} ({loved}){low_words} ({bad}), {between} between, which are "
        "dropped"
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
