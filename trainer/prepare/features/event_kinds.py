"""Kinds of events: what the user says becomes of each, and the SQL that numbers them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from trainer.base.mistake import Mistake
from trainer.data.description import MOST_KINDS
from trainer.data.schema import DISLIKED, LIKED, Kind, Role
from trainer.sources import sql
from trainer.sources.checks import Thresholds
from trainer.sources.kinds import Kind as ColumnKind
from trainer.sources.kinds import values_of
from trainer.sources.sources import Source

DROP = "drop"
PLAIN: dict[str, Role] = {"negative": "negative", "history": "history"}
HOW = "NAME=WEIGHT (above 0), NAME=negative, NAME=history or NAME=drop"
MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class EventKinds:
    """The kinds of a dataset, and how a row of table `raw` tells its own."""

    kinds: tuple[Kind, ...]
    expression: str
    """SQL of the kind's number; NULL for rows that are dropped."""
    dropped: dict[str, str]
    """By reason, SQL condition of the rows that are dropped."""
    away: tuple[str, ...] = ()
    """Names of the kinds that are dropped."""


def parse_event_weights(texts: Sequence[str]) -> dict[str, float | str]:
    """By name of a kind its weight, "negative", "history" or "drop"."""
    found: dict[str, float | str] = {}
    for each in (part for text in texts for part in text.split(",") if part.strip()):
        name, _, value = (word.strip() for word in each.rpartition("="))
        if not name or name in found:
            raise Mistake(f"--event-weights {each!r:.60}: give {HOW}, each kind once")
        if value in (*PLAIN, DROP):
            found[name] = value
            continue
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not 0 < weight <= MOST_WEIGHT:
            raise Mistake(
                f"--event-weights {each!r:.60}: {value!r} is no weight above 0 (at most "
                f"{MOST_WEIGHT:,.0f}): give {HOW}"
            )
        found[name] = weight
    return found


def kinds_of_ratings(thresholds: Thresholds | None) -> EventKinds:
    """Liked and disliked, by the thresholds of ratings; all liked without ratings."""
    if thresholds is None:
        return EventKinds((LIKED,), "0::TINYINT", {})
    rating = "TRY_CAST(rating AS DOUBLE)"
    kinds = (LIKED,) if thresholds.dislike is None else (LIKED, DISLIKED)
    low = "" if thresholds.dislike is None else f"WHEN {rating} <= {thresholds.dislike!r} THEN 1 "
    return EventKinds(
        kinds,
        f"(CASE WHEN {rating} >= {thresholds.positive!r} THEN 0 {low}END)::TINYINT",
        {"missing_rating": f"{rating} IS NULL OR isnan({rating})"},
    )


def kinds_of_events(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    weights: dict[str, float | str],
    known: Sequence[Kind] | None,
    known_away: Sequence[str] = (),
) -> EventKinds:
    """The kinds of column `event` of table `raw`.

    known: those of a dataset being extended, which keep their numbers and weights. known_away:
    those that it dropped.

    Raises:
        Mistake: where a kind of the rows is not named, or a named one has no rows.
    """
    label = f"column {source.columns['event']!r} of {source.label}"
    text = values_of("event", ColumnKind("text"))
    counted = connection.execute(
        f"SELECT {text} AS name, count(*) FROM raw WHERE {text} IS NOT NULL GROUP BY name "
        f"ORDER BY count(*) DESC, name LIMIT {MOST_KINDS + 1}"
    ).fetchall()
    there: dict[str, int] = dict(counted)
    if len(there) > MOST_KINDS:
        raise Mistake(
            f"{label} holds more than {MOST_KINDS} kinds: is --event-column the right column?"
        )
    if not there:
        raise Mistake(f"{label} is empty in all rows: name another column with --event-column")
    if not weights and known is None:
        weights = dict.fromkeys(there, 1.0)
    away = {name for name, value in weights.items() if value == DROP} | {*known_away}
    kinds = _kinds(weights) if known is None else _as_known(weights, known)
    names = {kind.name for kind in kinds}
    strange = {name: count for name, count in there.items() if name not in names | away}
    if strange:
        name, count = next(iter(strange.items()))
        raise Mistake(
            f"{label} holds {name!r} in {count:,} rows, which --event-weights does not name: add "
            f"{name}=WEIGHT, {name}=negative, {name}=history or {name}=drop"
        )
    unused = [name for name in weights if name not in there] if known is None else []
    if unused:
        raise Mistake(
            f"--event-weights {unused[0]}: {label} holds no such kind. {sql.near(unused[0], there)}"
        )
    cases = " ".join(
        f"WHEN {text} = {sql.text(kind.name)} THEN {number}" for number, kind in enumerate(kinds)
    )
    dropped = {"missing_event": f"{text} IS NULL"}
    for name in sorted(away & there.keys()):
        word = re.sub(r"\W+", "_", name)
        dropped[f"event_{word}"] = f"coalesce({text} = {sql.text(name)}, false)"
    return EventKinds(kinds, f"(CASE {cases} END)::TINYINT", dropped, tuple(sorted(away)))


def _kinds(weights: dict[str, float | str]) -> tuple[Kind, ...]:
    """The kinds that are kept: the heaviest are looked for, and come first."""
    given = {name: each for name, each in weights.items() if isinstance(each, float)}
    if not given:
        raise Mistake("--event-weights names no kind with a weight: there is nothing to look for")
    heaviest = max(given.values())
    kinds = [
        Kind(name, "positive" if weight == heaviest else "signal", weight)
        for name, weight in sorted(given.items(), key=lambda each: (-each[1], each[0]))
    ]
    for name, value in weights.items():
        if isinstance(value, str) and value in PLAIN:
            kinds.append(Kind(name, PLAIN[value]))
    return tuple(kinds)


def _as_known(weights: dict[str, float | str], known: Sequence[Kind]) -> tuple[Kind, ...]:
    """The kinds of a dataset being extended; raises Mistake where others are asked for."""
    for kind in known:
        held = kind.weight if kind.role in ("positive", "signal") else kind.role
        if weights.get(kind.name, held) != held:
            raise Mistake(
                f"--event-weights {kind.name}={weights[kind.name]}: it is {held} in the extended "
                "dataset: leave it out, or prepare all data anew"
            )
    return tuple(known)
