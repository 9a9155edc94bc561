"""The scale that numbers are read on: measured once, kept with the dataset."""

from __future__ import annotations

import duckdb

from trainer.data.feature_types import Scale
from trainer.sources import sql

BINS = 16
SKEWED = 2.0
"""Numbers from 0 on whose third moment says more than this are read as log(1 + x)."""


def scale_of(connection: duckdb.DuckDBPyConnection, relation: str, column: str) -> Scale | None:
    """The scale of a column's finite numbers; None where no two of them differ."""
    numbers = f"(SELECT {column}::DOUBLE AS x FROM {relation} WHERE isfinite({column}))"
    cuts = ", ".join(str(n / BINS) for n in range(BINS + 1))
    low, high, skew, bounds = sql.one(
        connection,
        f"SELECT min(x), max(x), skewness(x), quantile_disc(x, [{cuts}]) FROM {numbers}",
    )
    if low is None or low == high:
        return None
    log1p = low >= 0 and skew is not None and skew > SKEWED
    read = "ln(1 + x)" if log1p else "x"
    mean, spread = sql.one(connection, f"SELECT avg({read}), stddev_pop({read}) FROM {numbers}")
    return Scale(log1p, mean, max(spread, 1e-30), tuple(sorted(set(bounds))))
