"""Split rules, as SQL over one partition of users.

The relation `kept` has `user, item, feedback, moment, position, given, old`: `moment` is the
timestamp, or the position where there is none; `given` the split that the source names; `old` the
split in the dataset being extended, or NULL. Each rule adds `split`: 0 train, 1 validation, 2 test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.sources import sql

RuleName = Literal["given", "time", "leave-last-out", "random"]
RULES = ("given", "time", "leave-last-out", "random")
LATEST = "moment DESC, position DESC"


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


def split_query(rule: SplitRule, kept: str, earlier: str) -> str:
    """SELECT of all columns of `kept` and `split`.

    earlier: a relation (user, positives) of what users liked in earlier windows.

    An extended dataset's training rows stay training rows under every rule, since a model may have
    learnt them; under `given` and `random` its held-out rows stay as well.
    """
    match rule.rule:
        case "given":
            share = 0.0 if "validation" in rule.given else rule.validation_share or 0.0
            order = LATEST if rule.validation == "last" else _hash_order(rule)
            return (
                _ranked(
                    rule,
                    f"(SELECT * FROM {kept} WHERE coalesce(given, 0) = 0)",
                    order,
                    (0.0, share),
                )
                + f" UNION ALL SELECT *, coalesce(old, given) AS split FROM {kept} WHERE given > 0"
            )
        case "random":
            shares = (rule.test_share or 0.0, rule.validation_share or 0.0)
            return _ranked(rule, kept, _hash_order(rule), shares)
        case "time":
            test, validation = sql.literal(rule.test_from), sql.literal(rule.validation_from)
            return f"""SELECT *, CASE WHEN old = 0 THEN 0 WHEN moment >= {test} THEN 2
                WHEN moment >= {validation} THEN 1 ELSE 0 END AS split FROM {kept}"""
        case "leave-last-out":
            if rule.test_share is None:
                return _last_positives(kept, earlier)
            shares = (rule.test_share, rule.validation_share or 0.0)
            return _ranked(rule, kept, LATEST, shares)


def _hash_order(rule: SplitRule) -> str:
    return f"hash(user, item, {sql.literal(rule.seed)}), item"


def _ranked(rule: SplitRule, kept: str, order: str, shares: tuple[float, float]) -> str:
    """The first rows of each user in an order become test, the next ones validation.

    A user of n rows gives n x share of them, rounded up or down by a hash so that the mean is kept
    for short users too, and never the last training row.
    """
    frozen = "old IS NOT NULL" if rule.rule in ("given", "random") else "old = 0"
    apart = ", old IS NULL" if rule.rule in ("given", "random") else ""
    test = _quota(rule, shares[0], "n - 1", "test")
    validation = _quota(rule, shares[1], "n - 1 - test_rows", "validation")
    return f"""SELECT * EXCLUDE (rank, n, test_rows, validation_rows),
            CASE WHEN {frozen} THEN old WHEN rank <= test_rows THEN 2
                WHEN rank <= test_rows + validation_rows THEN 1 ELSE 0 END AS split
        FROM (SELECT *, {validation} AS validation_rows FROM (SELECT *, {test} AS test_rows FROM (
            SELECT *, count(*) OVER (PARTITION BY user{apart}) AS n,
                row_number() OVER (PARTITION BY user{apart} ORDER BY {order}) AS rank
            FROM {kept})))"""


def _quota(rule: SplitRule, share: float, limit: str, salt: str) -> str:
    drawn = f"hash(user, {sql.literal(rule.seed)}, {sql.text(salt)})"
    uniform = f"({drawn} % 1000003)::DOUBLE / 1000003::DOUBLE"
    return f"least({limit}, floor(n * {sql.literal(float(share))} + {uniform}))::BIGINT"


def _last_positives(kept: str, earlier: str) -> str:
    """The last positive of each user is test, the one before validation.

    Dislikes later than these go with them. Users of fewer than three positives are all train.
    """
    before = f"coalesce((SELECT sum(e.positives) FROM {earlier} AS e WHERE e.user = rows.user), 0)"
    return f"""SELECT * EXCLUDE (positives, later),
            CASE WHEN old = 0 OR positives + {before} < 3 THEN 0 WHEN later = 0 THEN 2
                WHEN later = 1 THEN 1 ELSE 0 END AS split
        FROM (SELECT *, count(*) FILTER (feedback = 1) OVER (PARTITION BY user) AS positives,
                count(*) FILTER (feedback = 1) OVER (PARTITION BY user ORDER BY moment, position
                    ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING) AS later
            FROM {kept}) AS rows"""
