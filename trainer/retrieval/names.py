"""From raw ids, as they are written, to rows of a dataset."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from trainer.base.mistake import Mistake
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset

ROWS_READ_AT_ONCE = 1 << 18
IDS_COMPARED = 50_000
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,39}")
HOW_TO_QUOTE = (
    "an id that holds a comma or a quotation mark, or blanks at its edges, is quoted as in CSV: "
    "--items '\"Doe, Jane\",i5'"
)


def split_ids(written: str, flag: str = "--items") -> list[tuple[str, ...]]:
    """The ids of a flag, each as it stands and without the blanks around it.

    They are parted and quoted as in CSV: `i3,i8`, `"Doe, Jane",i5`.
    """
    try:
        (fields,) = csv.reader([written], strict=True)
    except (csv.Error, ValueError) as error:
        raise Mistake(f"{flag} {written!r} cannot be read ({error}): {HOW_TO_QUOTE}") from error
    ids = [tuple(dict.fromkeys((each, each.strip()))) for each in fields if each.strip()]
    if not ids:
        raise Mistake(f"{flag} is empty: give at least one item id")
    return ids


def find_rows(
    dataset: Dataset,
    side: Literal["user", "item"],
    raw_ids: Sequence[str | tuple[str, ...]],
    hint: str = "",
) -> list[int]:
    """Rows of raw ids, in their order. Reads the ids' column once, without keeping it.

    Args:
        raw_ids: an id, or forms of it, of which the first that is there is taken.
        hint: said beside an id that is not there.

    Raises:
        Mistake: for an id that is not there, with near ones.
    """
    path = dataset.file(f"{side}s.parquet")
    forms = [(each,) if isinstance(each, str) else each for each in raw_ids]
    found: dict[Any, int] = {}
    with open_parquet(path) as file:
        kind = file.schema_arrow.field("raw_id").type
        wanted = [_as_ids(each, kind, side) for each in forms]
        values = pa.array([raw_id for each in wanted for raw_id in each], kind)
        some: list[Any] = []
        start = 0
        for batch in file.iter_batches(ROWS_READ_AT_ONCE, columns=["raw_id"]):
            column = batch.column(0)
            hits = pc.indices_nonzero(pc.is_in(column, value_set=values)).to_pylist()
            found |= {column[hit].as_py(): start + hit for hit in hits}
            some += column.slice(0, max(IDS_COMPARED - len(some), 0)).to_pylist()
            start += len(column)
    for each in wanted:
        if not found.keys() & set(each):
            message = f"no {side} {each[-1]!r} in {dataset.path}: {_near(each[-1], some)}"
            raise Mistake(f"{message}; {hint}" if hint else message)
    return [next(found[raw_id] for raw_id in each if raw_id in found) for each in wanted]


def _as_ids(forms: Sequence[str], kind: pa.DataType, side: str) -> list[Any]:
    """Forms of an id as values of the ids' column; `1_0` and `+10` are not the number 10."""
    if not pa.types.is_integer(kind):
        return list(forms)
    numbers = [int(each) for each in forms if WHOLE_NUMBER.fullmatch(each)]
    least, most = _range_of(kind)
    fitting = [number for number in numbers if least <= number <= most]
    if not fitting:
        raise Mistake(
            f"{side} {forms[0]!r}: the ids of this dataset are whole numbers from {least} to {most}"
        )
    return fitting


def _range_of(kind: pa.DataType) -> tuple[int, int]:
    bits = kind.bit_width
    if pa.types.is_unsigned_integer(kind):
        return 0, (1 << bits) - 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _near(raw_id: int | str, some: list[Any]) -> str:
    names = [str(each) for each in some]
    if isinstance(raw_id, int):  # near by digits is not near by meaning
        return f"ids are whole numbers, such as {', '.join(names[:3])}"
    close = difflib.get_close_matches(str(raw_id), names, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"ids look like {', '.join(names[:3])}"
