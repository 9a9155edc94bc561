"""The vocabulary of one attribute: its values' rows, which they keep for life."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import duckdb

from trainer.data.feature_types import folded
from trainer.data.schema import RESERVED
from trainer.sources import sql

MAX_VALUES = 100_000
"""Rows of a vocabulary; rarer values are unknown."""


@dataclass(frozen=True)
class Vocabulary:
    """An attribute's rows of table `vocabulary` (side, name, row, value, count)."""

    connection: duckdb.DuckDBPyConnection
    side: str
    name: str

    @property
    def own(self) -> str:
        """SQL condition: rows of `vocabulary` that are the attribute's."""
        return f"side = {sql.text(self.side)} AND name = {sql.text(self.name)}"

    @property
    def values(self) -> str:
        """SQL relation (row, value) of all but row 0."""
        return f"(SELECT row, value FROM vocabulary WHERE {self.own} AND row > 0)"

    @property
    def largest_row(self) -> int:
        """-1 where there are none."""
        return sql.number(
            self.connection, f"SELECT coalesce(max(row), -1) FROM vocabulary WHERE {self.own}"
        )

    def extend(self, counted: str) -> int:
        """Append the values that are not there yet, the most frequent first; rows after that.

        counted: SQL relation (value, count); NULL for what is missing.
        """
        largest = self.largest_row
        if largest < 0:
            self.add(
                0, None, f"(SELECT coalesce(sum(count), 0) FROM {counted} WHERE value IS NULL)"
            )
            largest = 0
        self.connection.execute(
            f"""INSERT INTO vocabulary
            SELECT {sql.text(self.side)}, {sql.text(self.name)},
                {largest} + row_number() OVER (ORDER BY count DESC, value), value, count
            FROM (SELECT value, count FROM {counted} WHERE value IS NOT NULL
                    AND value NOT IN (SELECT value FROM {self.values})
                ORDER BY count DESC, value LIMIT {max(MAX_VALUES - 1 - largest, 0)})"""
        )
        return self.largest_row + 1

    def add(self, row: int, value: str | None, count: str) -> None:
        """One row. count: SQL of its number."""
        self.connection.execute(
            f"""INSERT INTO vocabulary SELECT {sql.text(self.side)}, {sql.text(self.name)}, {row},
            {sql.literal(value)}, {count}"""
        )

    def clear(self) -> None:
        """Take its rows away."""
        self.connection.execute(f"DELETE FROM vocabulary WHERE {self.own}")


def own_name(name: str, taken: Collection[str]) -> str:
    """The attribute's name: the column's, unless a table of the dataset has it already."""
    used = {*RESERVED, *map(folded, taken)}
    while folded(name) in used:
        name += "_"
    return name
