"""Windows of time: which rows belong to which, and what a window carries of those before it.

Each window keeps for its users the last H events of every sign from earlier windows, marked
`carried`: its histories need no other file. A window before the newest is all training data.

Shapes: E = events of a block of whole users, W = windows, H = longest history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import duckdb
import numpy as np

from trainer.base.mistake import Mistake
from trainer.data.events.event_files import Events, events_of, joined_events
from trainer.data.events.event_reader import EventReader, feedback_of
from trainer.data.events.event_rows import EventRows
from trainer.data.schema import Dataset
from trainer.prepare.partitions.sorting import begins_of, order_by
from trainer.sources import sql
from trainer.sources.times import A_SECOND, unit_of_moment

SECONDS = {"hour": 3600, "day": 86_400, "week": 7 * 86_400}
SHORT = {"h": "hour", "d": "day", "w": "week"}
MOST_WINDOWS = 10_000
FORMS = "hour, day, week, a number of them (12h, 7d, 2w) or a number of rows (1000000)"
EARLIER = -1
"""The window, in a block, of events that are on disk already."""


@dataclass(frozen=True)
class WindowRule:
    """How rows are dealt into windows."""

    seconds: int | None = None
    """Length of a window; windows begin at multiples of it since 1970, UTC."""
    rows: int | None = None
    """Rows of a window."""

    @staticmethod
    def parse(text: str) -> WindowRule:
        """Raises Mistake where the text is no rule."""
        found = re.fullmatch(r"(\d{1,18})?\s*(rows|hour|day|week|h|d|w)?s?", text.strip())
        number, word = found.groups() if found else (None, None)
        if not found or text.strip() == "" or (word == "rows" and not number):
            raise Mistake(f"--window {text!r:.60} is no window: take {FORMS}")
        count = int(number or 1)
        if not 1 <= count <= 2**40:
            raise Mistake(f"--window {text!r:.60} must be at least 1: take {FORMS}")
        if word in (None, "rows"):
            return WindowRule(rows=count)
        return WindowRule(seconds=count * SECONDS[SHORT.get(word, word)])


def window_starts(
    connection: duckdb.DuckDBPyConnection, relation: str, rule: WindowRule, label: str
) -> list[int]:
    """First moment of each window that has rows of `relation` (column moment), ascending."""
    if rule.rows is not None:
        starts = _starts_by_rows(connection, relation, rule.rows)
    else:
        assert rule.seconds is not None
        length = rule.seconds * _moments_a_second(connection, relation, label)
        starts = [
            number * length
            for (number,) in connection.execute(
                f"SELECT DISTINCT (moment // {length})::BIGINT AS n FROM {relation} ORDER BY n"
            ).fetchall()
        ]
    if len(starts) > MOST_WINDOWS:
        raise Mistake(
            f"--window makes {len(starts):,} windows of {label}, at most {MOST_WINDOWS:,} are "
            "possible: take longer ones"
        )
    return starts


def _starts_by_rows(connection: duckdb.DuckDBPyConnection, relation: str, rows: int) -> list[int]:
    """Windows of at least so many rows: rows of one moment stay together."""
    found = connection.execute(
        f"""SELECT min(moment) AS start FROM (
            SELECT moment, sum(count(*)) OVER (ORDER BY moment) - count(*) AS before
            FROM {relation} GROUP BY moment)
        GROUP BY before // {rows} ORDER BY start"""
    ).fetchall()
    return [start for (start,) in found]


def _moments_a_second(connection: duckdb.DuckDBPyConnection, relation: str, label: str) -> int:
    middle = sql.number(connection, f"SELECT median(moment)::BIGINT FROM {relation}")
    unit = unit_of_moment(middle)
    if unit is None:
        raise Mistake(
            f"--window of a length of time needs times that are seconds (or milli-, micro-, "
            f"nanoseconds) since 1970, {label} has values like {middle}: give a number of rows"
        )
    return A_SECOND[unit]


@dataclass(frozen=True)
class KnownBefore:
    """What a dataset holds of the users of new rows."""

    is_known_P: np.ndarray
    """Which of the new pairs are there already, bool."""
    user_U: np.ndarray
    """The users, ascending."""
    positives_U: np.ndarray
    """Positives that they have, int64."""
    last: Events | None
    """Their last H events of each sign."""


def known_before(
    parent: Dataset,
    user_P: np.ndarray,
    item_P: np.ndarray,
    group_P: np.ndarray,
    group_K: np.ndarray,
) -> KnownBefore:
    """What a dataset holds of the users of new pairs of user and item, which ascend.

    group_P: a pair that is there with a kind of another group is another one. group_K: by kind.
    """
    user_P, item_P = user_P.astype(np.int64), item_P.astype(np.int64)
    users = np.unique(user_P)
    is_known_P = np.zeros(len(user_P), dtype=bool)
    positives = np.zeros(len(users), dtype=np.int64)
    if not len(users):
        return KnownBefore(is_known_P, users, positives, None)
    reader = EventReader(parent)
    num_items = max(parent.num_items, int(item_P.max()) + 1)
    wanted_U = np.zeros(max(parent.num_users, int(users[-1]) + 1), dtype=bool)
    wanted_U[users] = True
    parts = []
    for number in range(reader.num_groups):
        begin, end = np.searchsorted(user_P, reader.range_of(number))
        if begin == end:
            continue
        rows = reader.read(number)
        chosen_R = wanted_U[rows.user_R]
        rows = rows.only(chosen_R[rows.row_E] & rows.own_E, chosen_R)
        new = user_P[begin:end] * num_items + item_P[begin:end]
        old = rows.user_R[rows.row_E] * num_items + rows.item_E
        for group in np.unique(group_P[begin:end]):
            place_g = np.flatnonzero(group_P[begin:end] == group)
            new_g, old_g = new[place_g], old[group_K[rows.kind_E] == group]
            found_g = np.minimum(np.searchsorted(new_g, old_g), len(new_g) - 1)
            is_known_P[begin + place_g[found_g[new_g[found_g] == old_g]]] = True
        liked = np.bincount(rows.row_E[rows.feedback_E == 1], minlength=len(rows.user_R))
        positives[np.searchsorted(users, rows.user_R)] += liked
        parts.append(_last_of_each_sign(rows, parent.history_length))
    last = joined_events(parts) if parts else None
    if last is not None and len(parent.windows) > 1:
        last = _last_of_all(last, feedback_of(parent.kinds) < 0, parent.history_length)
    return KnownBefore(is_known_P, users, positives, last)


def _last_of_all(events: Events, disliked_K: np.ndarray, limit: int) -> Events:
    """The last events of each user and sign, of those of several windows, one after the other."""
    assert events.time_E is not None
    events = events.take(order_by(events.user_E, events.time_E))
    return events.take(last_of_each_sign(events.user_E, disliked_K[events.kind_E], limit))


def _last_of_each_sign(rows: EventRows, limit: int) -> Events:
    chosen_E = last_of_each_sign(rows.row_E, rows.feedback_E < 0, limit)
    return events_of(rows.only(chosen_E))


def last_of_each_sign(user_E: np.ndarray, disliked_E: np.ndarray, limit: int) -> np.ndarray:
    """The last `limit` events of each user and sign, bool; events lie by user."""
    chosen_E = np.zeros(len(user_E), dtype=bool)
    for sign in (False, True):
        place = np.flatnonzero(disliked_E == sign)
        start_U = np.flatnonzero(begins_of(user_E[place]))
        count_U = np.diff(start_U, append=len(place))
        end = np.repeat(start_U + count_U, count_U)
        chosen_E[place[end - np.arange(len(place)) <= limit]] = True
    return chosen_E


def each_window(
    events: Events, window_E: np.ndarray, windows: int, disliked_K: np.ndarray, limit: int
) -> Iterator[tuple[int, Events]]:
    """A block's events by window, each with what it carries of the windows before.

    Args:
        events: whole users, each in order of time.
        window_E: the window of each event; EARLIER for those that are on disk.
        disliked_K: which kinds are negative, bool.
    """
    if windows == 1:
        earlier_E = window_E == EARLIER
        if earlier_E.any():  # no more than what is carried
            split_E = np.where(earlier_E, 0, events.split_E).astype(np.int8)
            events = replace(events, split_E=split_E, carried_E=earlier_E.astype(np.int8))
        yield 0, events
        return
    user_E, disliked_E = events.user_E, disliked_K[events.kind_E]
    for window in range(windows):
        own_E = window_E == window
        if not own_E.any():
            continue
        present = np.unique(user_E[own_E])
        before = np.flatnonzero((window_E < window) & np.isin(user_E, present))
        chosen = before[last_of_each_sign(user_E[before], disliked_E[before], limit)]
        carried_E = np.zeros(len(user_E), dtype=np.int8)
        carried_E[chosen] = 1
        marked = replace(
            events,
            split_E=np.where(carried_E > 0, 0, events.split_E).astype(np.int8),
            carried_E=carried_E,
        )
        yield window, marked.take(own_E | (carried_E > 0))
