"""Split rules, over the rows of one partition of users that are kept.

Rows lie by user and time. An extended dataset's training rows stay training rows, since a model may
have learnt them, and its held-out rows stay as well: `old_E`, which only data without times have
(with times old rows are windows of their own).

Shapes: E = rows, G = groups of a user's rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa

from trainer.prepare.partitions.sorting import begins_of, order_by
from trainer.prepare.partitions.staged_rows import StagedRows
from trainer.sources import sql

RuleName = Literal["given", "time", "leave-last-out", "random"]
RULES = ("given", "time", "leave-last-out", "random")
HASHED = 1_000_003
"""Numbers that a user's share is rounded by."""
LEAST_POSITIVES = 3
"""Of a user who is asked about the last one."""


@dataclass(frozen=True)
class SplitRule:
    """How interactions are dealt into train, validation and test."""

    rule: RuleName
    test_share: float | None
    """Share of rows for test; None under leave-last-out holds out one positive a user each."""
    validation_share: float | None
    """Share of rows for validation; under `given` the share of the given train rows."""
    seed: int
    validation_from: int | None = None
    """First timestamp of validation, under `time`."""
    test_from: int | None = None
    """First timestamp of test, under `time`."""
    given: tuple[str, ...] = ()
    """Splits that the source names, under `given`."""
    validation: Literal["random", "last"] = "random"
    """Which of a user's given train rows are validation, under `given`."""

    @property
    def follows_time(self) -> bool:
        """True where held-out rows are later than the user's training rows."""
        return self.rule in ("time", "leave-last-out")


@dataclass(frozen=True)
class Hashes:
    """DuckDB's hashes of rows of ids: the same for all engines and machines."""

    connection: duckdb.DuckDBPyConnection

    def of(
        self, expressions: str, user_E: np.ndarray, item_E: np.ndarray | None = None
    ) -> np.ndarray:
        """hash(expressions) of each row, uint64; they may name `user` and `item`."""
        columns = {"user": user_E, "item": user_E if item_E is None else item_E}
        self.connection.register("hashed", pa.table(columns))
        found = self.connection.sql(
            f"""SELECT hash({expressions}) AS hash
            FROM (SELECT user::BIGINT AS user, item::BIGINT AS item FROM hashed)"""
        ).fetchnumpy()["hash"]
        self.connection.unregister("hashed")
        return np.asarray(found, dtype=np.uint64)


def split_of(
    rule: SplitRule,
    rows: StagedRows,
    liked_E: np.ndarray,
    liked_before_E: np.ndarray,
    hashes: Hashes,
) -> np.ndarray:
    """0 train, 1 validation or 2 test for each row, int8.

    Args:
        liked_E: rows of positive kinds, bool.
        liked_before_E: positives of the row's user in earlier windows.
    """
    match rule.rule:
        case "given":
            share = 0.0 if "validation" in rule.given else rule.validation_share or 0.0
            split_E = np.where(rows.old_E >= 0, rows.old_E, rows.given_E)
            free_E = rows.given_E <= 0
            chosen = rows.take(free_E)
            last = rule.validation == "last"
            order_E = _latest(chosen) if last else _at_random(chosen, rule, hashes)
            split_E[free_E] = _ranked(rule, chosen, order_E, (0.0, share), hashes)
            return split_E
        case "random":
            shares = (rule.test_share or 0.0, rule.validation_share or 0.0)
            return _ranked(rule, rows, _at_random(rows, rule, hashes), shares, hashes)
        case "time":
            assert rule.test_from is not None and rule.validation_from is not None
            tested_E, asked_E = (
                rows.moment_E >= start for start in (rule.test_from, rule.validation_from)
            )
            return np.where(tested_E, 2, asked_E).astype(np.int8)
        case "leave-last-out":
            if rule.test_share is None:
                return _last_positives(rows, liked_E, liked_before_E)
            shares = (rule.test_share, rule.validation_share or 0.0)
            return _ranked(rule, rows, _latest(rows), shares, hashes)


def _latest(rows: StagedRows) -> np.ndarray:
    """Places of the rows, a user's together and the last one first."""
    return np.arange(len(rows.user_E))[::-1]


def _at_random(rows: StagedRows, rule: SplitRule, hashes: Hashes) -> np.ndarray:
    """Places of the rows, a user's new ones together in an order by hash."""
    hash_E = hashes.of(f"user, item, {sql.literal(rule.seed)}", rows.user_E, rows.item_E)
    return order_by(rows.user_E, rows.old_E >= 0, hash_E)


def _ranked(
    rule: SplitRule,
    rows: StagedRows,
    order_E: np.ndarray,
    shares: tuple[float, float],
    hashes: Hashes,
) -> np.ndarray:
    """The first rows of each user in an order become test, the next ones validation.

    A user of n new rows gives n x share of them, rounded up or down by a hash so that the mean is
    kept for short users too, and never the last training row.
    """
    user_E = rows.user_E[order_E]
    start_G = np.flatnonzero(begins_of(user_E, rows.old_E[order_E] >= 0))
    rows_G = np.diff(start_G, append=len(user_E))
    left_G = rows_G - 1
    last_G = []
    for share, salt in zip(shares, ("test", "validation"), strict=True):
        drawn = f"user, {sql.literal(rule.seed)}, {sql.text(salt)}"
        uniform_G = hashes.of(drawn, user_E[start_G]) % np.uint64(HASHED) / float(HASHED)
        quota_G = np.minimum(left_G, np.floor(rows_G * share + uniform_G)).astype(np.int64)
        left_G = left_G - quota_G
        last_G.append(rows_G - 1 - left_G)
    rank_E = np.arange(len(user_E)) - np.repeat(start_G, rows_G)
    test_E, validation_E = (rank_E < np.repeat(last, rows_G) for last in last_G)
    split_E = np.empty(len(user_E), dtype=np.int8)
    split_E[order_E] = np.where(test_E, 2, validation_E)
    return np.where(rows.old_E >= 0, rows.old_E, split_E)


def _last_positives(
    rows: StagedRows, liked_E: np.ndarray, liked_before_E: np.ndarray
) -> np.ndarray:
    """The last positive of each user is test, the one before validation.

    Other events later than these go with them. Users of fewer than three positives are all train.
    """
    start_G = np.flatnonzero(begins_of(rows.user_E))
    rows_G = np.diff(start_G, append=len(liked_E))
    up_to_E = np.cumsum(liked_E, dtype=np.int64)
    end_E = np.repeat(up_to_E[start_G + rows_G - 1], rows_G)
    begin_E: np.ndarray = np.repeat(up_to_E[start_G] - liked_E[start_G], rows_G)
    asked_E = end_E - begin_E + liked_before_E >= LEAST_POSITIVES
    later_E: np.ndarray = end_E - up_to_E
    return np.where(asked_E, np.maximum(2 - later_E, 0), 0).astype(np.int8)
