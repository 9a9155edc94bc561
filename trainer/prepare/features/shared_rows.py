"""`--min-count K`: rows of tables for users and items, of whom those that are met less share some.

An id that training has met K times has a row of its own, and keeps it. The others share rows by a
hash: what few events say of each is said together, and tables of long-tailed catalogs are small.

Shapes: N = users or items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from trainer.data.rare_ids import shared_row_of
from trainer.data.schema import Dataset, TableRows

RARE_A_ROW = 10
"""Ids that share a row, in the mean, when a dataset is made."""
OWN_A_ROW = 100
"""Rows of single ids to a shared one at most: what is appended may bring many more rare ids."""
UNCHANGED = -1
"""What stands for an id that has no row yet."""


@dataclass(frozen=True)
class DealtRows:
    """The rows of one side's table."""

    table: TableRows
    row_N: np.ndarray
    """Of each id, int32."""
    admitted: int
    """Ids that had a shared row before, and have one of their own now."""


def rows_to_deal(
    parent: Dataset | None, min_count: int | None, min_user_count: int | None
) -> dict[str, TableRows | int]:
    """By side, the table of the dataset that is extended, or the count that is asked for."""
    if parent is not None:
        return dict(parent.table_rows)
    asked = {"user": min_user_count, "item": min_count}
    return {side: count for side, count in asked.items() if count is not None}


def deal_rows(
    count_N: np.ndarray, before_N: np.ndarray | None, table: TableRows | int
) -> DealtRows:
    """Deal rows to ids by their counts.

    Args:
        count_N: positives in train.
        before_N: the row that each has in the dataset that is extended; UNCHANGED: it is new.
        table: of that dataset; or, of a new one, the count from which on an id has its own.
    """
    if before_N is None:
        before_N = np.full(len(count_N), UNCHANGED)
    if isinstance(table, int):
        enough = int(np.count_nonzero(count_N >= table))
        shared = max(1, -(-(len(count_N) - enough) // RARE_A_ROW), -(-enough // OWN_A_ROW))
        table = TableRows(min_count=table, shared=shared, own=0)
    had_own_N = before_N >= table.shared
    new_N = (count_N >= table.min_count) & ~had_own_N
    shared_N = shared_row_of(np.arange(len(count_N)), table.shared)
    row_N = np.where(had_own_N, before_N, shared_N)
    new = int(np.count_nonzero(new_N))
    row_N[new_N] = table.shared + table.own + np.arange(new)
    own = TableRows(table.min_count, table.shared, table.own + new)
    admitted = int(np.count_nonzero(new_N & (before_N != UNCHANGED)))
    return DealtRows(own, row_N.astype(np.int32), admitted)


def dealt_in_table(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    counted: str,
    extends: bool,
    table: TableRows | int,
) -> DealtRows:
    """Make table `rows_SIDE` (row, table_row).

    Args:
        counted: SQL after FROM of rows (row, count) of every id.
        extends: table `old_SIDE` has a column table_row.
    """
    before = f"coalesce(old.table_row, {UNCHANGED})" if extends else str(UNCHANGED)
    join = f"LEFT JOIN old_{side} AS old ON old.row = counted.row" if extends else ""
    found = connection.execute(
        f"""SELECT counted.count AS count, {before} AS before FROM {counted} AS counted {join}
        ORDER BY counted.row"""
    ).fetchnumpy()
    dealt = deal_rows(np.asarray(found["count"]), np.asarray(found["before"]), table)
    rows = pa.table({"row": np.arange(len(dealt.row_N)), "table_row": dealt.row_N})
    connection.register("dealt", rows)
    connection.execute(f"CREATE TABLE rows_{side} AS SELECT * FROM dealt")
    connection.unregister("dealt")
    return dealt


def told(dealt: Mapping[str, DealtRows]) -> dict[str, int]:
    """What dataset.json notes of ids that got a row of their own."""
    return {
        f"{side}s_with_a_row_of_their_own_now": each.admitted
        for side, each in dealt.items()
        if each.admitted
    }
