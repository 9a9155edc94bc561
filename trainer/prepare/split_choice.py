"""Which split rule suits a source, and the moments of a split by time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from trainer.base.mistake import Mistake
from trainer.prepare.partitions.kept_rows import one_a_pair, windows_of
from trainer.prepare.partitions.splits import SplitRule
from trainer.prepare.partitions.staged_rows import UNKNOWN, read_staged
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.sources import sql
from trainer.sources.checks import Thresholds
from trainer.sources.sources import Source

DEFAULT_SHARE = 0.1


def choose_rule(
    arguments: PrepareArguments, source: Source, thresholds: Thresholds | None
) -> SplitRule:
    """The user's rule, or the one that suits the source; with its shares."""
    rule: Any = arguments.split
    if rule is None:
        rule = "given" if source.given else "leave-last-out" if source.has_timestamp else "random"
    if rule in ("time", "leave-last-out") and not source.has_timestamp:
        raise Mistake(
            f"--split {rule} needs times, {arguments.source} has none: name their column with "
            "--timestamp-column, say --in-order if its rows stand in it, or take --split random"
        )
    if rule == "given" and "test" not in source.given:
        raise Mistake(
            f"--split given needs files named train and test, {arguments.source} has "
            f"{' and '.join(source.given) or 'none'}: take another --split"
        )
    if arguments.validation is not None and (rule != "given" or "validation" in source.given):
        raise Mistake(
            f"--validation {arguments.validation} has a meaning only where the source names train "
            "and test but no validation part: leave it out"
        )
    if arguments.validation == "last" and not source.has_timestamp:
        raise Mistake(
            f"--validation last needs times, {arguments.source} has none: name their column with "
            "--timestamp-column, or say --in-order if a user's rows stand in time order"
        )
    test: float | None = arguments.test_share
    has_dislikes = thresholds is not None and thresholds.dislike is not None
    if rule == "given":
        if test is not None:
            raise Mistake("--test-share has no meaning with --split given: leave it out")
    elif test is None and (rule != "leave-last-out" or (has_dislikes and arguments.split is None)):
        test = DEFAULT_SHARE
    validation = arguments.validation_share or DEFAULT_SHARE
    if rule == "leave-last-out" and test is None:
        if arguments.validation_share is not None:
            raise Mistake(
                "--validation-share with --split leave-last-out needs --test-share too; "
                "without both, each user's last positive is test and the one before validation"
            )
        return SplitRule(rule, None, None, arguments.seed or 0)
    if rule == "given" and "validation" in source.given:
        validation = 0.0
    chosen = arguments.validation or ("last" if source.in_order and rule == "given" else "random")
    return SplitRule(
        rule, test, validation, arguments.seed or 0, given=source.given, validation=chosen
    )


def with_moments(
    connection: duckdb.DuckDBPyConnection,
    rule: SplitRule,
    staging: str,
    parts: int,
    group_K: np.ndarray,
    keep: str,
    starts: tuple[int, ...],
) -> SplitRule:
    """The rule `time` with the moments that leave its shares of the newest window after them.

    Duplicates and neutral ratings leave first, as they do when partitions are made.
    """
    connection.execute("CREATE TEMP TABLE moments (moment BIGINT, rows BIGINT)")
    for part in range(parts):
        staged, place_P = one_a_pair(read_staged(staging, part), group_K, keep, starts)
        moment_P = staged.moment_E[place_P]
        newest_P = windows_of(moment_P, starts) == max(len(starts), 1) - 1
        counted_P = newest_P & (staged.kind_E[place_P] != UNKNOWN)
        moment, count = np.unique(moment_P[counted_P], return_counts=True)
        connection.register("counted", pa.table({"moment": moment, "rows": count}))
        connection.execute("INSERT INTO moments SELECT moment, rows FROM counted")
    connection.unregister("counted")
    rows = sql.number(connection, "SELECT coalesce(sum(rows), 0) FROM moments")
    if not rows:
        return replace(rule, validation_from=0, test_from=0)
    test = rule.test_share or 0.0
    held_out = test + (rule.validation_share or 0.0)
    moments = [
        sql.number(
            connection,
            f"""SELECT min(moment) FROM (
                SELECT moment, sum(sum(rows)) OVER (ORDER BY moment) AS up_to
                FROM moments GROUP BY moment)
            WHERE up_to > {min(rows - 1, int(rows * (1 - share)))}""",
        )
        for share in (held_out, test)
    ]
    connection.execute("DROP TABLE moments")
    return replace(rule, validation_from=moments[0], test_from=moments[1])
