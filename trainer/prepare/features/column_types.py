"""Types of columns that the user sets: by flags, or by a file of them.

# features.toml
[items]
price = "number"          # category, number, buckets, vector or leave-out
year = "category"

[users]
age = "buckets"

[context]
hour = "category"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from trainer.base.mistake import Mistake
from trainer.base.typed import read_as
from trainer.files.filesystems import filesystem_of, reached, readable
from trainer.sources import sql
from trainer.sources.kinds import Kind
from trainer.sources.sources import SideTable

ColumnType = Literal["category", "number", "buckets", "vector", "leave-out"]
COLUMN_TYPES: tuple[ColumnType, ...] = get_args(ColumnType)
MOST_BYTES = 1 << 20
READ_AS = {
    "category": ("guess", "text", "number", "time", "multi", "list"),
    "number": ("guess", "text", "number", "time"),
    "buckets": ("guess", "text", "number", "time"),
    "vector": ("guess", "text", "vector"),
}
"""Forms of a column that can be read as each type."""


@dataclass(frozen=True)
class ColumnTypes:
    """Types by column, of each table."""

    items: dict[str, ColumnType] = field(default_factory=dict)
    users: dict[str, ColumnType] = field(default_factory=dict)
    context: dict[str, ColumnType] = field(default_factory=dict)

    @staticmethod
    def read(path: str) -> ColumnTypes:
        """Out of a TOML file."""
        filesystem, name = filesystem_of(path)
        with reached(path), readable(path):
            if filesystem.size(name) > MOST_BYTES:
                raise Mistake(f"--features {path} has more than {MOST_BYTES:,} bytes")
            text = filesystem.cat_file(name)
        try:
            found = tomllib.loads(text.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Mistake(f"--features {path} is no TOML file: {error}") from error
        try:
            return read_as(ColumnTypes, found)
        except Mistake as mistake:
            raise Mistake(f"--features {path}: {mistake}") from None

    def of(self, side: str) -> dict[str, ColumnType]:
        """Of "item", "user" or "context"."""
        return {"item": self.items, "user": self.users, "context": self.context}[side]

    def with_flags(self, **named: Sequence[str]) -> ColumnTypes:
        """The same with columns of any table that flags name, by type."""
        more: dict[str, ColumnType] = {}
        for column_type in COLUMN_TYPES:
            for name in named.get(column_type.replace("-", "_"), ()):
                if more.setdefault(name, column_type) != column_type:
                    raise Mistake(f"column {name} is asked for as {more[name]} and {column_type}")
        return ColumnTypes(self.items | more, self.users | more, self.context | more)


def check_types(
    types: ColumnTypes, tables: Mapping[str, SideTable | None], context: Sequence[str]
) -> None:
    """Raise Mistake where a column whose type is set is in no table."""
    known = {
        side: [each.split(":")[0] for each in table.kinds] if table is not None else []
        for side, table in tables.items()
    }
    known["context"] = list(context)
    everywhere = [name for names in known.values() for name in names]
    for side in known:
        for name, column_type in types.of(side).items():
            if name not in everywhere:
                raise Mistake(
                    f"column {name} is to be a {column_type}, but no file has such a column. "
                    + (sql.near(name, everywhere) if everywhere else "Give --items or --users FILE")
                )


def as_asked(kind: Kind, column_type: ColumnType | None, label: str) -> Kind:
    """How a column is read that is to have a type."""
    if column_type is None or column_type == "leave-out":
        return kind
    if kind.form not in READ_AS[column_type]:
        why = kind.reason or f"it is a {kind.form}"
        raise Mistake(f"{label} cannot be a {column_type}: {why}: leave it out")
    if column_type == "category":
        return replace(kind, form="text") if kind.form in ("guess", "number", "time") else kind
    if column_type == "vector":
        return replace(kind, form="vector")
    return replace(kind, form=kind.of, insist=True)
