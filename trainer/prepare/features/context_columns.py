"""The context of events: columns of the interactions as categories or numbers of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import duckdb

from trainer.base.mistake import Mistake
from trainer.data.feature_types import Attribute
from trainer.prepare.features.column_types import ColumnType, as_asked
from trainer.prepare.features.scales import scale_of
from trainer.prepare.features.vocabulary import Vocabulary, own_name
from trainer.sources.kinds import Kind, settle, values_of, with_few_as_text
from trainer.sources.sources import Source


@dataclass(frozen=True)
class ContextColumn:
    """One attribute of events, as SQL over table `raw`."""

    attribute: Attribute
    join: str
    """What the rows are joined with."""
    expression: str
    """The value of a row: a category's row in the vocabulary, or FLOAT, NaN where missing."""

    @property
    def column(self) -> str:
        """Its name in the events' files."""
        return f"context.{self.attribute.name}"


def encode_context(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    types: Mapping[str, ColumnType],
    known: Mapping[str, Attribute] | None,
) -> list[ContextColumn]:
    """The context's columns, their vocabularies in table `vocabulary`.

    known: the attributes of a dataset being extended, which has these and no others.
    """
    if known is not None and set(known) != set(source.context):
        had, given = sorted(known) or "none", sorted(source.context) or "none"
        raise Mistake(
            f"the extended dataset has the context {had}, {source.label} is to give {given}: give "
            "the same with --context"
        )
    found: list[ContextColumn] = []
    for place, (name, kind) in enumerate(source.context.items()):
        label = f"{source.label}: column {name!r} (--context)"
        column = f"x{place}"
        kind = as_asked(settle(connection, "raw", column, kind), types.get(name), label)
        if kind.form in ("none", "multi", "list", "vector", "guess"):
            raise Mistake(
                f"{label} holds {'several values a row' if kind.form != 'none' else 'no values'}"
                f"{f' ({kind.reason})' if kind.reason else ''}: a row's context is a category or a "
                "number; leave it out"
            )
        before = None if known is None else known[name]
        called = own_name(name, [each.attribute.name for each in found])
        if _is_number(connection, column, kind, types.get(name), before):
            found.append(_number(connection, called, column, kind, before, label))
        else:
            found.append(_category(connection, called, column, kind))
    return found


def _is_number(
    connection: duckdb.DuckDBPyConnection,
    column: str,
    kind: Kind,
    set_to: ColumnType | None,
    known: Attribute | None,
) -> bool:
    if known is not None:
        return known.kind == "number"
    kind = with_few_as_text(connection, "raw", column, kind)
    return kind.form in ("number", "time") and set_to != "buckets"


def _number(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    column: str,
    kind: Kind,
    known: Attribute | None,
    label: str,
) -> ContextColumn:
    number = kind.float32(f"raw.{column}")
    expression = f"coalesce({number}, 'NaN'::FLOAT)"
    if known is not None:
        return ContextColumn(known, "", expression)
    scale = scale_of(connection, f"(SELECT {number} AS x FROM raw)", "x")
    if scale is None:
        raise Mistake(f"{label} holds no two different numbers: leave it out")
    return ContextColumn(Attribute(name, "number", of=kind.of, scale=scale), "", expression)


def _category(
    connection: duckdb.DuckDBPyConnection, name: str, column: str, kind: Kind
) -> ContextColumn:
    vocabulary = Vocabulary(connection, "context", name)
    value = values_of(f"raw.{column}", replace(kind, form="text"))
    num_values = vocabulary.extend(
        f"(SELECT {value} AS value, count(*) AS count FROM raw GROUP BY value)"
    )
    table = f"vocabulary_{column}"
    return ContextColumn(
        Attribute(name, "single", num_values),
        f"LEFT JOIN {vocabulary.values} AS {table} ON {table}.value = {value}",
        f"coalesce({table}.row, 0)::INTEGER",
    )
