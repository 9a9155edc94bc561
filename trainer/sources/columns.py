"""Columns of a source: found by name, and read from Parquet or from text with a header."""

from __future__ import annotations

from dataclasses import dataclass, field

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.folder_columns import folder_columns
from trainer.sources.kinds import Kind, kind_of
from trainer.sources.lakes import LAKES, lake_relation
from trainer.sources.text_files import (
    Header,
    check_packing,
    header_of,
    readable,
    suffix_of,
    text_relation,
)


@dataclass(frozen=True)
class Columns:
    """Columns named by the user; None is recognised by name."""

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    title: str | None = None
    event: str | None = None
    """What kind of event a row is."""
    weight: str | None = None
    context: tuple[str, ...] = ()
    of_items: tuple[str, ...] = ()
    """Columns of the interactions that describe the item: each of its rows says the same."""
    of_users: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=dict)
    """Names that the extended dataset's source had: they come before the usual ones."""

    def usual(self, which: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names by which a column is recognised, the likeliest first."""
        return (self.known[which], *names) if which in self.known else names


class Table:
    """Files of columns: Parquet, or text with a header."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, format: str, files: list[str], label: str
    ) -> None:
        self.format, self.files, self.label = format, files, label
        self._connection = connection
        self._header: Header | None = None
        self._texts: dict[str, bool] = {}
        self._lake: str | None = None
        self._folder_notes: tuple[str, ...] = ()
        self.of_folders: tuple[str, ...] = ()
        """Columns that the names of folders hold, as text."""
        if format in LAKES:
            self._lake = lake_relation(connection, format, files[0], label)
        elif format == "parquet":
            for each in files:
                check_packing(each)
        else:
            self._header = _one_header(files)
        with readable(label, format):
            self.types = sql.columns_of(connection, self.relation(nulls=False))
        """DuckDB's types by column name; columns without a name are left out."""
        self.types = {each: of_type for each, of_type in self.types.items() if each.strip()}
        if format in ("parquet", "csv"):
            named, self._folder_notes = folder_columns(label, files)
            lowered = {each.lower() for each in self.types}
            self.of_folders = tuple(each for each in named if each.lower() not in lowered)
            self._of_files = tuple(self.types)
            self.types |= dict.fromkeys(self.of_folders, "VARCHAR")

    @property
    def is_typed(self) -> bool:
        """Whether the files say what their columns hold; else all is text."""
        return self._header is None

    def kind_of(self, column: str) -> Kind:
        """How a column is read as an attribute."""
        guessed = not self.is_typed or column in self.of_folders
        return kind_of(column, self.type_of(column), guessed=guessed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as the files' names have it."""
        if self._header is None or self._header.separator == "\t":
            return self._folder_notes
        if suffix_of(self.files[0]) in (".csv", ".txt"):
            return self._folder_notes
        return (
            *self._folder_notes,
            f"{self.label}: the separator is {self._header.separator!r}, not a tab",
        )

    def relation(self, nulls: bool, files: list[str] | None = None) -> str:
        """SQL after FROM. nulls: in text, what stands for a missing value is NULL."""
        if self._lake is not None:
            return self._lake
        if self._header is None:
            table = sql.parquet(
                self._connection, files or self.files, by_name=True, folders=self.of_folders != ()
            )
            if not self.of_folders:
                return table
            names = ", ".join(map(sql.name, (*self._of_files, *self.of_folders)))
            return f"(SELECT {names} FROM {table})"
        return text_relation(
            self._connection, files or self.files, self._header, nulls, self.of_folders
        )

    def value(self, column: str | None) -> str:
        """SQL of a column's value; bytes as the text that they are, if they all are."""
        if column is None:
            return "NULL"
        return f"decode({sql.name(column)})" if self._is_text(column) else sql.name(column)

    def type_of(self, column: str) -> str:
        """The type of `value`."""
        return "VARCHAR" if self._is_text(column) else self.types[column]

    def _is_text(self, column: str) -> bool:
        """Whether a column holds bytes, all of them UTF-8."""
        if self.types[column] != "BLOB":
            return False
        if column not in self._texts:
            quoted = sql.name(column)
            with readable(self.label, self.format):
                bad = self._connection.execute(
                    f"SELECT 1 FROM {self.relation(nulls=False)} WHERE {quoted} IS NOT NULL "
                    f"AND TRY(decode({quoted})) IS NULL LIMIT 1"
                ).fetchone()
            self._texts[column] = bad is None
        return self._texts[column]


def _one_header(files: list[str]) -> Header:
    first = header_of(files[0])
    for other in files[1:]:
        header = header_of(other)
        if header.names != first.names:
            raise Mistake(
                f"{other} has other columns than {files[0]} ({', '.join(first.names)}): "
                "give files with one header, or name the one file"
            )
        if header.separator != first.separator:
            raise Mistake(
                f"{other} separates columns by {header.separator!r}, {files[0]} by "
                f"{first.separator!r}: give files with one separator"
            )
    return first


def resolve(
    wanted: str | None, known: dict[str, str], usual: tuple[str, ...], flag: str, label: str
) -> str | None:
    """A column by the user's name for it, or by the usual names; None where there is none.

    RecBole's headers carry a type (`user_id:token`), which may be left out.
    """
    plain = {each.split(":")[0]: each for each in known}
    if wanted is not None:
        if wanted in known:
            return wanted
        if wanted in plain:
            return plain[wanted]
        raise Mistake(f"{label} has no column {wanted!r} ({flag}). {sql.near(wanted, plain)}")
    lowered = {each.lower(): full for each, full in plain.items()}
    return next((lowered[each.lower()] for each in usual if each.lower() in lowered), None)


def required(
    wanted: str | None, known: dict[str, str], usual: tuple[str, ...], flag: str, label: str
) -> str:
    """`resolve`, raising where there is no such column."""
    column = resolve(wanted, known, usual, flag, label)
    if column is None:
        raise Mistake(
            f"{label} has no column called {' or '.join(usual[:3])}: name it with {flag}. "
            f"There are: {', '.join(known)}"
        )
    return column
