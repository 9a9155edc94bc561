"""The context of a request: what the user says of it, as the model's features hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.base.typed import nearest
from trainer.data.feature_types import Attribute
from trainer.data.schema import Dataset
from trainer.files.filesystems import filesystem_of

HOW = "give --context NAME=VALUE"


def parsed_context(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of the command line."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or name in found:
            raise Mistake(f"--context {text!r:.60}: {HOW}, each name once")
        found[name] = value
    return found


def context_of(
    dataset: Dataset, given: Mapping[str, str | float], reads: Sequence[str]
) -> dict[str, np.ndarray]:
    """By key, one value: a category's row, or a number.

    Args:
        reads: keys that the model reads.

    Raises:
        Mistake: for a name that the dataset or the model lacks, and for a value that it never met.
    """
    known = {each.name: each for each in dataset.context_attributes}
    found: dict[str, np.ndarray] = {}
    for name, value in given.items():
        key = f"context.{name}"
        if name not in known or key not in reads:
            names = [each for each in known if f"context.{each}" in reads]
            raise Mistake(
                f"context {name!r:.60}: {nearest(name, names)}the model reads "
                f"{', '.join(names) or 'no context (model.context_attributes)'}"
            )
        found[key] = np.array([_value(dataset, known[name], value)])
    return found


def _value(dataset: Dataset, attribute: Attribute, value: str | float) -> float:
    if attribute.kind == "number":
        return _number(attribute, value)
    text = str(value).strip()
    filesystem, path = filesystem_of(dataset.file("attributes.parquet"))
    wanted = (pc.field("side") == "context") & (pc.field("name") == attribute.name)
    table = pq.read_table(
        path, filesystem=filesystem, partitioning=None, columns=["row", "value"], filters=wanted
    )
    rows = dict(
        zip(table.column("value").to_pylist(), table.column("row").to_pylist(), strict=True)
    )
    if text in rows:
        return int(rows[text])
    values = [each for each in rows if each is not None]
    raise Mistake(
        f"context {attribute.name}={text!r:.60}: {nearest(text, values)}the data never had it; "
        f"there are {len(values):,} values, for example {', '.join(values[:5])}"
    )


def _number(attribute: Attribute, value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
        if attribute.of == "time":
            try:
                moment = datetime.fromisoformat(str(value))
                number = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            except ValueError:
                pass
    if not math.isfinite(number):
        what = "a time (ISO 8601, or seconds since 1970)" if attribute.of == "time" else "a number"
        raise Mistake(f"context {attribute.name}={value!r:.60} is not {what}")
    return number
