"""Attributes of users, items and events, as dataset.json has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from trainer.base.typed import Range

AttributeKind = Literal["single", "multi", "number", "vector"]
Count = Annotated[int, Range(least=0, most=2**62)]
Finite = Annotated[float, Range(least=-1.7e308, most=1.7e308)]
VECTORS = "vectors"
"""Folder of a dataset for files of vectors."""
LARGEST_VECTOR = 65_536


def folded(name: str) -> str:
    """What of a column's name tells it from others: case does not, for DuckDB, nor do dots."""
    return name.lower().replace(".", "_")


@dataclass(frozen=True)
class Scale:
    """How a number becomes what a tower reads: x, or log(1 + x), less its mean, by its spread."""

    log1p: bool
    mean: Finite
    spread: Annotated[float, Range(above=0, most=1.7e308)]
    quantiles: Annotated[tuple[Finite, ...], Range(least=1, most=256)]
    """Of the number itself, ascending: bounds of bins that hold equally many."""


@dataclass(frozen=True)
class VectorFile:
    """Vectors of consecutive rows, one after the other without a header; zeros where missing."""

    file: str
    """Relative to the dataset's folder; its name ends in the type of its numbers: .f16 or .f32."""
    rows: Count


@dataclass(frozen=True)
class Attribute:
    """One attribute of users, items or events: categories (rows of a table), a number, a vector."""

    name: Annotated[str, Range(least=1)]
    """Column in items.parquet or users.parquet; "context.NAME" in the events' files."""
    kind: AttributeKind
    """single: an int64 column; multi: a list<int64> column; number: a float32 column, NaN where
    missing; vector: in files of its own."""
    num_values: Annotated[int, Range(least=0, most=2**31)] = 0
    """Rows of the vocabulary, row 0 (missing or unknown) included; 0 where there is none."""
    boundaries: tuple[float, ...] = ()
    """Where numbers are dealt into buckets: the lower bounds of rows 2, 3, ...; else empty."""
    of: Literal["number", "time"] = "number"
    """What numbers and boundaries are: numbers of the source, or seconds (since 1970)."""
    scale: Scale | None = None
    """Of a number."""
    width: Annotated[int, Range(least=0, most=LARGEST_VECTOR)] = 0
    """Of a vector: its numbers; else 0."""
    vectors: tuple[VectorFile, ...] = ()
    """Of a vector: the files of all rows, in order."""

    @property
    def is_dense(self) -> bool:
        """Whether a tower reads it as numbers rather than looks it up."""
        return self.kind in ("number", "vector")
