"""The tables of a dataset that belong to no partition: items, users, attributes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb

from trainer.data.schema import TableRows
from trainer.prepare.features.attributes import Encoded
from trainer.prepare.features.shared_rows import DealtRows, dealt_in_table
from trainer.prepare.partitions.partition import COUNTS
from trainer.sources import sql

MISSING = {"single": "0::BIGINT", "multi": "[]::BIGINT[]", "number": "'NaN'::FLOAT"}
ROW_GROUP_ROWS = 32_768
PARQUET = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
TABLE = f"{PARQUET}, DICTIONARY_SIZE_LIMIT 1"
"""Plain integer columns: dense rows are read whole, a dictionary would only be undone."""


def write_items_and_users(
    connection: duckdb.DuckDBPyConnection,
    staging: str,
    out: str,
    attributes: dict[str, list[Encoded]],
    title: str | None,
    extends: bool,
    appends: bool,
    has_new: bool,
    deals: Mapping[str, TableRows | int],
) -> dict[str, DealtRows]:
    """Write items.parquet and users.parquet, rows ascending without gaps; rows of tables by side.

    title: the column of table side_item that holds titles, by its name there. extends: rows that
    the side tables lack take their title and attributes from tables old_item and old_user. appends:
    the parent's events are counted with the new ones, all as training data where `has_new`.
    deals: as `rows_to_deal` has it.
    """
    dealt: dict[str, DealtRows] = {}
    for side in ("item", "user"):
        columns = [f"{side}s.row AS {side}", f"{side}s.raw AS raw_id"]
        parts = sorted(Path(staging, f"counts-{side}").glob("*.parquet"))
        counts = sql.parquet(connection, parts)
        joins = [
            f"""LEFT JOIN (SELECT row, sum(count)::BIGINT AS count,
                    sum(count_with_validation)::BIGINT AS count_with_validation,
                    sum(count_of_all)::BIGINT AS count_of_all
                FROM {counts} GROUP BY row) AS counts ON counts.row = {side}s.row""",
            f"LEFT JOIN side_{side} AS side ON side.raw = {side}s.raw",
        ]
        if extends:
            joins.append(f"LEFT JOIN old_{side} AS old ON old.row = {side}s.row")
        if side == "item":
            titles = ["old.title"] if extends else []
            titles += [] if title is None else [f"nullif(trim(CAST(side.{title} AS VARCHAR)), '')"]
            columns.append(f"coalesce({', '.join([*reversed(titles), 'NULL::VARCHAR'])}) AS title")
        totals = {}
        for name in COUNTS:
            before = ""
            if appends:
                before = f"coalesce(old.{'count_of_all' if has_new else name}, 0) + "
            totals[name] = f"{before}coalesce(counts.{name}, 0)"
            columns.append(f"{totals[name]} AS {name}")
        if side in deals:
            counted = f"(SELECT {side}s.row, {totals['count']} AS count FROM {side}s"
            counted += f" {' '.join(joins)})"
            dealt[side] = dealt_in_table(connection, side, counted, extends, deals[side])
            columns.append("dealt.table_row")
            joins.append(f"JOIN rows_{side} AS dealt ON dealt.row = {side}s.row")
        for each in attributes[side]:
            if each.attribute.kind == "vector":
                continue  # in files of its own
            name = sql.name(each.attribute.name)
            values = [] if each.table is None else [f"{each.table}.value"]
            values += [f"old.{sql.name(old_column(each.attribute.name))}"] if extends else []
            values.append(MISSING[each.attribute.kind])
            columns.append(f"coalesce({', '.join(values)}) AS {name}")
            if each.table is not None:
                joins.append(f"LEFT JOIN {each.table} ON {each.table}.raw = {side}s.raw")
        connection.execute(
            f"COPY (SELECT {', '.join(columns)} FROM {side}s {' '.join(joins)} "
            f"ORDER BY {side}s.row) TO {sql.target(f'{out}/{side}s.parquet')} ({TABLE})"
        )
    return dealt


def write_vocabularies(connection: duckdb.DuckDBPyConnection, out: str) -> None:
    """Write attributes.parquet: side, name, row, value, count."""
    connection.execute(
        "COPY (SELECT side, name, row, value, count FROM vocabulary ORDER BY side, name, row) "
        f"TO {sql.target(f'{out}/attributes.parquet')} ({PARQUET})"
    )


def old_column(attribute: str) -> str:
    """What tables old_item and old_user call an attribute: its name might be one of theirs."""
    return f"old {attribute}"
