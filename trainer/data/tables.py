"""The tables of a dataset that belong to no partition: items, users, attributes, queries."""

from __future__ import annotations

from pathlib import Path

import duckdb

from trainer.data import sql
from trainer.data.attributes import Encoded
from trainer.data.partition import PARQUET

TABLE = f"{PARQUET}, DICTIONARY_SIZE_LIMIT 1"
"""Plain integer columns: dense rows are read whole, a dictionary would only be undone."""


def write_items_and_users(
    connection: duckdb.DuckDBPyConnection,
    staging: str,
    out: str,
    attributes: dict[str, list[Encoded]],
    title: str | None,
) -> None:
    """Write items.parquet and users.parquet, rows ascending without gaps."""
    for side in ("item", "user"):
        columns = [f"{side}s.row AS {side}", f"{side}s.raw AS raw_id"]
        joins = [
            f"""LEFT JOIN (SELECT row, sum(count)::BIGINT AS count,
                    sum(count_with_validation)::BIGINT AS count_with_validation
                FROM read_parquet({sql.text(f"{staging}/counts-{side}/*.parquet")}) GROUP BY row)
                AS counts ON counts.row = {side}s.row"""
        ]
        if side == "item":
            shown = "NULL::VARCHAR" if title is None else f"CAST(side.{sql.name(title)} AS VARCHAR)"
            columns.append(f"{shown} AS title")
            if title is not None:
                joins.append("LEFT JOIN side_item AS side ON side.raw = items.raw")
        columns.append("coalesce(counts.count, 0) AS count")
        if side == "item":
            columns.append("coalesce(counts.count_with_validation, 0) AS count_with_validation")
        for each in attributes[side]:
            missing = "0" if each.attribute.kind == "single" else "[]::BIGINT[]"
            name = sql.name(each.attribute.name)
            columns.append(f"coalesce({each.table}.value, {missing}) AS {name}")
            joins.append(f"LEFT JOIN {each.table} ON {each.table}.raw = {side}s.raw")
        connection.execute(
            f"COPY (SELECT {', '.join(columns)} FROM {side}s {' '.join(joins)} "
            f"ORDER BY {side}s.row) TO {sql.text(f'{out}/{side}s.parquet')} ({TABLE})"
        )


def write_vocabularies(connection: duckdb.DuckDBPyConnection, out: str) -> None:
    """Write attributes.parquet: side, name, row, value, count."""
    connection.execute(
        "COPY (SELECT side, name, row, value, count FROM vocabulary ORDER BY side, name, row) "
        f"TO {sql.text(f'{out}/attributes.parquet')} ({PARQUET})"
    )


def join_queries(connection: duckdb.DuckDBPyConnection, staging: str, out: str) -> None:
    """Put the partitions' queries together, in the order of the partitions: users ascend."""
    (Path(out) / "queries").mkdir()
    for split in ("validation", "test"):
        parts = sorted(str(each) for each in Path(staging, f"queries-{split}").glob("*.parquet"))
        connection.execute(
            f"COPY (FROM read_parquet({sql.texts(parts)})) "
            f"TO {sql.text(f'{out}/queries/{split}.parquet')} ({PARQUET})"
        )
