"""Attributes of items and users: categories to rows of a vocabulary, numbers, vectors.

Row 0 of every vocabulary is missing or unknown; the others go by falling count, then by value.
Numbers and times of many values stay numbers, with the scale that a tower reads them on; on request
they become buckets of equal counts. Vectors are written last, by `vector_columns.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import duckdb

from trainer.base.mistake import Mistake
from trainer.data.feature_types import Attribute, AttributeKind
from trainer.prepare.features.column_types import ColumnType, as_asked
from trainer.prepare.features.scales import scale_of
from trainer.prepare.features.vector_columns import VectorColumn
from trainer.prepare.features.vocabulary import Vocabulary, own_name
from trainer.sources import sql
from trainer.sources.kinds import (
    TOO_MANY,
    Kind,
    bucket_names,
    is_nearly_unique,
    settle,
    values_of,
    with_few_as_text,
)
from trainer.sources.sources import SideTable

BUCKETS = 16
NOTHING = "holds no value"
ONE_NUMBER = "holds no two different numbers"


@dataclass(frozen=True)
class Encoded:
    """An attribute and the table (raw, value) that holds it for each row of the side table."""

    attribute: Attribute
    table: str | None
    """None where the side table lacks it (a dataset being extended has it), and of a vector."""
    vectors: VectorColumn | None = None
    """Where a vector is read."""


@dataclass(frozen=True)
class Wanted:
    """Which columns of a side table become attributes."""

    names: tuple[str, ...] | None
    """As the user named them; None for all."""
    title: str | None
    """Column kept as the title, an attribute only if it is named."""
    types: Mapping[str, ColumnType]
    """Types that the user set, by column."""
    flag: str
    """The command's flag, for messages."""


def encode_side(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    table: SideTable,
    wanted: Wanted,
    known: dict[str, Attribute] | None,
    tell: Callable[[str], None],
) -> tuple[list[Encoded], dict[str, str]]:
    """Encode the wanted columns of table `side_<side>`; also the columns left out, with reasons.

    Fills table `vocabulary` (side, name, row, value, count). `known` has the attributes of a
    dataset being extended, whose vocabulary is in `vocabulary` and keeps its rows.
    """
    columns = {each.split(":")[0]: each for each in table.kinds}
    for name in wanted.names or ():
        if name not in columns:
            raise Mistake(
                f"{table.label} has no column {name!r} ({wanted.flag}). {sql.near(name, columns)}"
            )
    names = wanted.names
    if names is None:
        names = tuple(each for each in columns if columns[each] != wanted.title)
    encoded: list[Encoded] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(names):
        called = own_name(name, [each.attribute.name for each in encoded])
        if known is not None and called not in known:
            left_out[name] = "is no attribute of the extended dataset"
            continue
        kind, set_to = table.kinds[columns[name]], wanted.types.get(name)
        if set_to == "leave-out":
            left_out[name] = "is left out as asked"
            continue
        insist = wanted.names is not None or set_to is not None
        kind = as_asked(kind, set_to, f"{table.label}: column {name!r}")
        encoder = _Encoder(
            connection,
            side,
            called,
            table.column(columns[name]),
            table.vectors.get(columns[name]),
            set_to == "buckets",
        )
        target = f"encoded_{side}_{len(encoded)}"
        found = encoder.encode(kind, None if known is None else known[called], target, insist)
        if isinstance(found, Encoded):
            encoded.append(found)
            _tell_of_buckets(found.attribute, side, name, tell)
        elif not insist:
            left_out[name] = found
        else:
            flag = wanted.flag if set_to is None else f"a {set_to}"
            raise Mistake(f"{table.label}: column {name!r} ({flag}) {found}: leave it out")
    there = {each.attribute.name for each in encoded}
    encoded.extend(Encoded(each, None) for name, each in (known or {}).items() if name not in there)
    return encoded, left_out


def _tell_of_buckets(
    attribute: Attribute, side: str, column: str, tell: Callable[[str], None]
) -> None:
    if attribute.boundaries:
        tell(f"{side} column {column}: {attribute.of}s in {attribute.num_values - 1} buckets")


@dataclass(frozen=True)
class _Encoder:
    """One column of table `side_<side>`, on its way to an attribute."""

    connection: duckdb.DuckDBPyConnection
    side: str
    name: str
    column: str
    select: str | None
    """Of a vector that is read by itself."""
    buckets: bool
    """Numbers become buckets."""

    @property
    def rows(self) -> str:
        return f"side_{self.side}"

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.connection, self.side, self.name)

    def encode(
        self, kind: Kind, known: Attribute | None, target: str, insist: bool
    ) -> Encoded | str:
        """Make table `target` (raw, value) and the vocabulary; or why the column is left out.

        insist: also where nearly every value is another one.
        """
        if self.select is None:
            kind = settle(self.connection, self.rows, self.column, kind)
        if kind.form == "none":
            return kind.reason
        if kind.form == "vector" or (known is not None and known.kind == "vector"):
            return self._vector(kind, known)
        if known is not None:
            kind = self._as_known(kind, known)
        elif not insist and is_nearly_unique(self.connection, self.rows, self.column, kind):
            return TOO_MANY
        else:
            kind = with_few_as_text(self.connection, self.rows, self.column, kind)
        if kind.form in ("number", "time"):
            if self.buckets or (known is not None and known.boundaries):
                attribute = self._buckets(kind, known, target)
            else:
                return self._number(kind, known, target)
        else:
            attribute = self._categories(kind, target)
        filled = "len(value) > 0" if attribute.kind == "multi" else "value > 0"
        if (
            known is None
            and not self.connection.execute(
                f"SELECT 1 FROM {target} WHERE {filled} LIMIT 1"
            ).fetchone()
        ):
            self.connection.execute(f"DROP TABLE {target}")
            self.vocabulary.clear()
            return NOTHING
        return Encoded(attribute, target)

    def _vector(self, kind: Kind, known: Attribute | None) -> Encoded | str:
        if kind.form != "vector" or (known is not None and known.kind != "vector"):
            held = "a vector" if kind.form == "vector" else f"a {kind.form}"
            raise Mistake(
                f"column {self.name!r} of the new {self.side}s holds {held}, the extended "
                "dataset's another kind of value: give it as before"
            )
        value = kind.vector(self.column)
        select = self.select or f"SELECT raw, {value} AS value FROM {self.rows}"
        column = VectorColumn(f"column {self.name!r} of the {self.side}s", select)
        width = column.width(self.connection)
        if isinstance(width, str):
            return width
        if known is not None and known.width != width:
            raise Mistake(
                f"column {self.name!r} of the new {self.side}s holds vectors of {width} numbers, "
                f"the extended dataset's have {known.width}: give it as before"
            )
        return Encoded(known or Attribute(self.name, "vector", width=width), None, column)

    def _number(self, kind: Kind, known: Attribute | None, target: str) -> Encoded | str:
        self.connection.execute(
            f"""CREATE TEMP TABLE {target} AS
            SELECT raw, {kind.float32(self.column)} AS value FROM {self.rows}"""
        )
        if known is not None:
            return Encoded(known, target)
        scale = scale_of(self.connection, target, "value")
        if scale is None:
            self.connection.execute(f"DROP TABLE {target}")
            return ONE_NUMBER
        return Encoded(Attribute(self.name, "number", of=kind.of, scale=scale), target)

    def _as_known(self, kind: Kind, known: Attribute) -> Kind:
        """The kind that gives what the extended dataset's attribute holds."""
        if known.boundaries or known.kind == "number":
            if kind.form not in ("number", "time"):
                kind = Kind("number")
            if kind.form != known.of:
                raise Mistake(
                    f"column {self.name!r} of the new {self.side}s holds {kind.form}s, the "
                    f"extended dataset's {known.of}s: give it as before"
                )
            return kind
        several = kind.form in ("multi", "list")
        if known.kind == "multi" and not several:
            return Kind("multi", "|")
        if known.kind == "single" and several:
            raise Mistake(
                f"column {self.name!r} of the new {self.side}s holds several values a row, the "
                "extended dataset's one: give it as before"
            )
        return kind if several else replace(kind, form="text")

    def _categories(self, kind: Kind, target: str) -> Attribute:
        shape: AttributeKind = "multi" if kind.form in ("multi", "list") else "single"
        self.connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE given_values AS
            SELECT DISTINCT raw, nullif(trim(CAST(each AS VARCHAR)), '') AS value
            FROM (SELECT raw, {values_of(self.column, kind)} AS each FROM {self.rows})"""
        )
        num_values = self.vocabulary.extend(
            "(SELECT value, count(*) AS count FROM given_values GROUP BY value)"
        )
        if shape == "single":
            row = "any_value(coalesce(v.row, 0))::BIGINT"
        else:
            row = "list(v.row ORDER BY v.row) FILTER (v.row IS NOT NULL)"
        self.connection.execute(
            f"""CREATE TEMP TABLE {target} AS SELECT g.raw, {row} AS value FROM given_values g
            LEFT JOIN {self.vocabulary.values} v ON v.value = g.value GROUP BY g.raw"""
        )
        return Attribute(self.name, shape, num_values)

    def _buckets(self, kind: Kind, known: Attribute | None, target: str) -> Attribute:
        number = kind.number(self.column)
        bounds = self._bounds(number) if known is None else known.boundaries
        listed = "[" + ", ".join(map(sql.literal, bounds)) + "]::DOUBLE[]"
        self.connection.execute(
            f"""CREATE TEMP TABLE {target} AS SELECT raw, CASE WHEN isfinite(number)
                THEN 1 + len(list_filter({listed}, lambda bound: bound <= number)) ELSE 0
                END::BIGINT AS value FROM (SELECT raw, {number} AS number FROM {self.rows})"""
        )
        names = ["", *bucket_names(bounds, kind)]
        if self.vocabulary.largest_row < 0:
            for row, value in enumerate(names):
                count = f"(SELECT count(*) FROM {target} WHERE value = {row})"
                self.vocabulary.add(row, value or None, count)
        return Attribute(self.name, "single", len(names), bounds, kind.of)

    def _bounds(self, number: str) -> tuple[float, ...]:
        """Inner bounds of buckets of about equal counts."""
        cuts = ", ".join(str(n / BUCKETS) for n in range(1, BUCKETS))
        found, lowest = sql.one(
            self.connection,
            f"SELECT quantile_disc(number, [{cuts}]), min(number) "
            f"FROM (SELECT {number} AS number FROM {self.rows}) WHERE isfinite(number)",
        )
        return tuple(sorted(set(found or ()) - {lowest}))
