"""Values of categories by row, and rows by value: what a request says, as the model holds it."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.base.typed import nearest
from trainer.data.feature_types import Attribute

Value = str | float | bool | None | list[Any]
"""Of a feature, as a request says it."""


class Vocabularies:
    """The values of the bundle's attributes; each is read when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = cache(self._read)

    def rows_of(self, side: str, attribute: Attribute, value: Value) -> np.ndarray:
        """What a category's or categories' table is looked up by, int64; [0]: missing.

        Raises:
            Mistake: for a value that the data never had.
        """
        if value is None:
            return np.zeros(1 if attribute.kind == "single" else 0, dtype=np.int64)
        if isinstance(value, list) and attribute.kind == "single":
            raise Mistake(f"{side} {attribute.name}: one value, not {len(value)}")
        values = value if isinstance(value, list) else [value]
        if attribute.boundaries:
            return np.array([self._bucket(side, attribute, each) for each in values])
        return np.array([self._row(side, attribute, each) for each in values], dtype=np.int64)

    def number_of(self, side: str, attribute: Attribute, value: Value) -> float:
        """A number, or the seconds of a time; NaN: missing."""
        if value is None:
            return math.nan
        number = _number(attribute, value)
        if not math.isfinite(number):
            time = "a time (ISO 8601, or seconds since 1970)"
            what = time if attribute.of == "time" else "a number"
            raise Mistake(f"{side} {attribute.name}={value!r:.60} is not {what}")
        return number

    def vector_of(self, side: str, attribute: Attribute, value: Value) -> np.ndarray:
        """A vector, float32; zeros: missing."""
        if value is None:
            return np.zeros(attribute.width, dtype=np.float32)
        try:
            vector = np.array(value, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.empty(0, dtype=np.float32)
        if vector.shape != (attribute.width,) or not np.isfinite(vector).all():
            raise Mistake(f"{side} {attribute.name}: a list of {attribute.width} finite numbers")
        return vector

    def _bucket(self, side: str, attribute: Attribute, value: Any) -> int:
        """As prepare deals numbers: row 1 below the first boundary."""
        if isinstance(value, str) and value in self._rows(side, attribute.name):
            return self._rows(side, attribute.name)[value]
        number = self.number_of(side, attribute, value)
        return 1 + int(np.searchsorted(attribute.boundaries, number, side="right"))

    def _row(self, side: str, attribute: Attribute, value: Any) -> int:
        text = _as_text(value)
        rows = self._rows(side, attribute.name)
        if text in rows:
            return rows[text]
        values = list(rows)
        raise Mistake(
            f"{side} {attribute.name}={text!r:.60}: {nearest(text, values)}the data never had it; "
            f"there are {len(values):,} values, for example {', '.join(values[:5])}"
        )

    def _read(self, side: str, name: str) -> dict[str, int]:
        wanted = (pc.field("side") == side) & (pc.field("name") == name)
        table = pq.read_table(
            self.path, partitioning=None, columns=["row", "value"], filters=wanted
        )
        values = (table.column(each).to_pylist() for each in ("value", "row"))
        return {value: row for value, row in zip(*values, strict=True) if value is not None}


def _as_text(value: Any) -> str:
    """As prepare writes a value down: booleans in small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _number(attribute: Attribute, value: Any) -> float:
    if isinstance(value, bool | list):
        return math.nan
    try:
        return float(value)
    except ValueError:
        if attribute.of != "time":
            return math.nan
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
