"""The rows of a source that `prepare --look` looks at: pairs, repeats, what splits would hold out.

Counted by numpy over two numbers an id: as queries they took four times as long.

Shapes: E = rows that have user and item.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import duckdb
import numpy as np

from trainer.data.candidates import hash_counter
from trainer.prepare.partitions.sorting import begins_of, order_by
from trainer.sources import sql
from trainer.sources.checks import INTEGERS, Thresholds


@dataclass(frozen=True)
class HeldOut:
    """What a rule would hold out for the test."""

    rows: int
    users: int
    """Who have something that they like among them: they are asked."""
    new_share: float
    """Of the rows, those whose items are in no other."""


@dataclass(frozen=True)
class LookedRows:
    """Users and items as numbers from 0, in the order of the source."""

    user_E: np.ndarray
    item_E: np.ndarray
    moment_E: np.ndarray
    """The time, or the place where rows stand in order; zeros where there is neither."""
    kept_E: np.ndarray
    """Bool: liked or disliked; what lies between is dropped."""
    liked_E: np.ndarray
    """Bool."""

    @staticmethod
    def read(
        connection: duckdb.DuckDBPyConnection, moment: str, thresholds: Thresholds | None = None
    ) -> LookedRows:
        """Out of table `looked`. moment: SQL of the time; rows without one come first."""
        liked, disliked = "true", "false"
        if thresholds is not None:
            rating = "coalesce(TRY_CAST(rating AS DOUBLE), 'NaN'::DOUBLE)"
            liked = f"({rating} >= {thresholds.positive} AND NOT isnan({rating}))"
            if thresholds.dislike is not None:
                disliked = f"{rating} <= {thresholds.dislike}"
        types = sql.columns_of(connection, "looked")
        sides = []
        for side in ("user", "item"):
            whole = types[f"raw_{side}"] in INTEGERS
            sides.append(f"raw_{side}::BIGINT" if whole else f"hash(raw_{side})")
        user_E, item_E, moment_E, liked_E, disliked_E = (
            connection.execute(
                f"""SELECT {sides[0]} AS user, {sides[1]} AS item,
                coalesce({moment}, {1 - 2**63})::BIGINT AS moment,
                {liked} AS liked, {disliked} AS disliked
            FROM looked WHERE raw_user IS NOT NULL AND raw_item IS NOT NULL"""
            )
            .fetchnumpy()
            .values()
        )
        kept_E = liked_E | disliked_E
        return LookedRows(_numbered(user_E), _numbered(item_E), moment_E, kept_E, liked_E)

    @cached_property
    def users(self) -> int:
        return int(self.user_E.max(initial=-1)) + 1

    @cached_property
    def items(self) -> int:
        return int(self.item_E.max(initial=-1)) + 1

    @property
    def _pair_E(self) -> np.ndarray:
        return self.user_E * max(self.items, 1) + self.item_E

    @property
    def pairs(self) -> int:
        """Different ones."""
        key_E = np.sort(self._pair_E)
        return int(np.count_nonzero(begins_of(key_E)))

    def one_a_pair(self, keep: str) -> LookedRows:
        """The rows that `prepare` keeps of these: of each user and item one, by time the `keep`
        ("first", "last"), which is dropped where it is neutral."""
        order_E = order_by(self.user_E, self.item_E, self.moment_E)
        key_E = self._pair_E[order_E]
        begin_P = np.flatnonzero(begins_of(key_E))
        at_P = begin_P if keep == "first" else np.append(begin_P[1:], len(key_E)) - 1
        place_P = np.sort(order_E[at_P])
        place_P = place_P[self.kept_E[place_P]]
        columns = (self.user_E, self.item_E, self.moment_E, self.kept_E, self.liked_E)
        user_P, item_P, *rest = (column[place_P] for column in columns)
        return LookedRows(_numbered(user_P), _numbered(item_P), *rest)

    def held_out(self, rule: str, share: float | None, default_share: float) -> HeldOut:
        """By a rule. share: of the rows, as the user says; None: as the rule has it."""
        match rule:
            case "leave-last-out":
                held_E = self._last(share)
            case "time":
                held_E = np.zeros(len(self.user_E), dtype=bool)
                if len(held_E):
                    part = default_share if share is None else share
                    first = np.partition(self.moment_E, place := int(len(held_E) * (1 - part)))
                    held_E = self.moment_E >= first[place]
            case _:
                part = default_share if share is None else share
                held_E = hash_counter(0, self._pair_E) % np.uint64(1000) < 1000 * part
        known_I = np.bincount(self.item_E[~held_E], minlength=self.items) > 0
        item_h = self.item_E[held_E]
        new = float(np.mean(~known_I[item_h])) if len(item_h) else 0.0
        users = np.count_nonzero(np.bincount(self.user_E[held_E & self.liked_E]))
        return HeldOut(len(item_h), int(users), new)

    def _last(self, share: float | None) -> np.ndarray:
        """The last row, or the last share, of each user of at least three; bool."""
        order_E = order_by(self.user_E, self.moment_E)
        count_U = np.bincount(self.user_E, minlength=self.users)
        held_U = np.ones_like(count_U) if share is None else np.rint(count_U * share)
        held_U = np.where(count_U >= 3, held_U, 0)
        user_E = self.user_E[order_E]
        from_end_E = np.cumsum(count_U)[user_E] - np.arange(len(user_E))
        held_E = np.zeros(len(user_E), dtype=bool)
        held_E[order_E] = from_end_E <= held_U[user_E]
        return held_E


def _numbered(id_E: np.ndarray) -> np.ndarray:
    """Equal ids as equal numbers from 0, int64."""
    order_E = order_by(id_E)
    number_E = np.empty(len(id_E), dtype=np.int64)
    number_E[order_E] = np.cumsum(begins_of(id_E[order_E])) - 1
    return number_E
