"""Histories of interactions, queries and users of today, as SQL.

All of them are the last H items of a user's rows in the order of (moment, position). Where data
have times, that is the order of time, ties by the place in the source, and a row sees what is
strictly before it. Where they have none, `position` is the row's place in a random order of its
user's rows (`places_without_time`), `moment` is the position, and histories are exchangeable: a row
sees a random min(H, n - 1) of the user's other items, a query a random min(H, n) of all.

`kept`, of one partition, has `user, item, feedback, moment, position, split`. A pool is the items
of one feedback that a split's rows may see: pool 0 holds train, pool 1 train and validation. A
user's items of a pool are numbered k = 1..n; `recent` of number k lists the last H up to it:

    items of a pool   a b c d e        H = 3
    k                 1 2 3 4 5        recent of k = 4: [b, c, d]

So the history of a row is `recent` of the number of pool items strictly before it: one equality
join, and H items a row whatever a user's length. Without times the pool is cyclic: the last H items
stand before the first as k = 1-H..0, and a row's own item is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

EMPTY = "[]::BIGINT[]"


@dataclass(frozen=True)
class History:
    """What histories hold."""

    length: int
    """H, the longest history."""
    cyclic: bool
    """True without timestamps: rows see the user's other items, not those before them."""
    until_first_target: bool
    """Queries see what lies before their first held-out row; else the whole pool."""
    with_disliked: bool
    """Also lists of disliked items."""

    @property
    def kinds(self) -> tuple[tuple[str, int], ...]:
        """Name of the lists and their feedback."""
        return (("history", 1), ("disliked", -1)) if self.with_disliked else (("history", 1),)


def places_without_time(seed: int) -> str:
    """Expression of a row's place in its user's rows, from 0, where there are no times.

    Of user, item and seed alone: the order of the source's rows tells of the items (files are
    sorted by time, by item, by rating) and is lost. Another order than the split's is.
    """
    order = f"hash(user, item, {seed}, 'place'), item"
    return f"row_number() OVER (PARTITION BY user ORDER BY {order}) - 1"


def latest(feedback: int, length: int, condition: str = "true") -> str:
    """Aggregate of a user's rows: its last `length` items of one feedback, oldest first."""
    if length == 0:
        return EMPTY
    items = "list(item ORDER BY moment, position)"
    chosen = f"{items} FILTER (feedback = {feedback} AND {condition})"
    return f"coalesce(({chosen})[-{length}:], {EMPTY})"


def history_tables(connection: duckdb.DuckDBPyConnection, history: History) -> None:
    """Make `earlier` (pool items before each user and time) and the pools."""
    counts = [
        (f"{kind}_{pool}", f"count(*) FILTER (feedback = {feedback} AND split <= {pool})")
        for kind, feedback in history.kinds
        for pool in (0, 1)
    ]
    sums = ", ".join(f"coalesce(sum({name}) OVER w, 0)::BIGINT AS {name}" for name, _ in counts)
    groups = ", ".join(f"{count} AS {name}" for name, count in counts)
    connection.execute(
        f"""CREATE TEMP TABLE earlier AS SELECT user, moment, {sums}
        FROM (SELECT user, moment, {groups} FROM kept GROUP BY user, moment)
        WINDOW w AS (PARTITION BY user ORDER BY moment
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"""
    )
    for kind, feedback in history.kinds:
        for pool in (0, 1):
            connection.execute(
                f"CREATE TEMP TABLE pool_{kind}_{pool} AS {_pool(history, feedback, pool)}"
            )


def _pool(history: History, feedback: int, pool: int) -> str:
    """SELECT of user, k, recent, and n where the pool is cyclic."""
    source = f"FROM kept WHERE feedback = {feedback} AND split <= {pool}"
    window = "PARTITION BY user ORDER BY moment, position"
    frame = f"ROWS BETWEEN {history.length - 1} PRECEDING AND CURRENT ROW"
    if history.length == 0:
        return f"SELECT user, 0 AS k, 0 AS n, {EMPTY} AS recent {source} LIMIT 0"
    if not history.cyclic:
        return f"""SELECT user, row_number() OVER w AS k, list(item) OVER (w {frame}) AS recent
            {source} WINDOW w AS ({window})"""
    return f"""WITH numbered AS (
            SELECT user, item, count(*) OVER (PARTITION BY user) AS n,
                row_number() OVER ({window}) AS k
            {source}),
        wrapped AS (FROM numbered UNION ALL
            SELECT user, item, n, k - n AS k FROM numbered WHERE k > n - {history.length})
        SELECT user, k, n, list(item) OVER (PARTITION BY user ORDER BY k {frame}) AS recent
        FROM wrapped"""


def _cut(history: History, kind: str, own: str) -> str:
    """A joined pool's list; in a cyclic pool no item twice and not the row's own."""
    if not history.cyclic:
        return f"coalesce(pool_{kind}.recent, {EMPTY}) AS {kind}"
    others = f"(pool_{kind}.n - ({own})::BIGINT)"
    return f"""CASE WHEN coalesce({others}, 0) <= 0 THEN {EMPTY}
        ELSE pool_{kind}.recent[-{others}:] END AS {kind}"""


def rows_select(history: History, split: int) -> str:
    """SELECT of a split's rows with `history` (and `disliked`)."""
    pool = 1 if split == 2 else 0
    lists = ", ".join(
        _cut(history, kind, f"kept.feedback = {feedback} AND kept.split <= {pool}")
        for kind, feedback in history.kinds
    )
    joins = " ".join(
        f"LEFT JOIN pool_{kind}_{pool} AS pool_{kind} ON pool_{kind}.user = kept.user "
        f"AND pool_{kind}.k = earlier.{kind}_{pool}"
        for kind, _ in history.kinds
    )
    return f"""SELECT kept.*, {lists}
        FROM kept JOIN earlier ON earlier.user = kept.user AND earlier.moment = kept.moment {joins}
        WHERE kept.split = {split}"""


def queries_select(history: History, split: int) -> str:
    """SELECT of one row a user with a positive in a held-out split."""
    before = "kept.moment < target.start" if history.until_first_target else "true"
    known = ", ".join(
        f"{latest(feedback, history.length, before)} AS {kind}" for kind, feedback in history.kinds
    )
    lists = ", ".join(f"coalesce(known.{kind}, {EMPTY}) AS {kind}" for kind, _ in history.kinds)
    disliked = f"coalesce(target.disliked, {EMPTY}) AS disliked_targets, "
    return f"""WITH target AS (
            SELECT user, min(moment) AS start,
                list(item ORDER BY moment, position) FILTER (feedback = 1) AS targets,
                list(item ORDER BY moment, position) FILTER (feedback = -1) AS disliked
            FROM kept WHERE split = {split} GROUP BY user
            HAVING count(*) FILTER (feedback = 1) > 0),
        known AS (
            SELECT kept.user, list(item ORDER BY item) AS seen, {known}
            FROM kept JOIN target ON target.user = kept.user
            WHERE kept.split < {split} GROUP BY kept.user)
        SELECT target.user, target.targets, {disliked if history.with_disliked else ""}
            coalesce(known.seen, {EMPTY}) AS seen, {lists}
        FROM target LEFT JOIN known ON known.user = target.user"""
