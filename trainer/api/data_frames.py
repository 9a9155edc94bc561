"""Tables that come in and go out: pandas, pyarrow, polars, whatever speaks Arrow."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake

T = TypeVar("T")
TableForm = Literal["pandas", "pyarrow"]
Form = Literal["list", TableForm]
PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""Columns that pandas makes of an index without a name."""


class ArrowTable(Protocol):
    """A table that gives its columns by Arrow's PyCapsule protocol."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


Source = str | Path | ArrowTable


def is_table(source: object) -> bool:
    """Whether it is a table rather than the name of a file."""
    return hasattr(source, "__arrow_c_stream__")


def write_table(table: ArrowTable, file: Path) -> None:
    """A table as a Parquet file, batch by batch.

    Raises:
        Mistake: where it has columns that Arrow has no type for.
    """
    try:
        reader = pa.RecordBatchReader.from_stream(table)
        kept = [name for name in reader.schema.names if not PANDAS_INDEX.fullmatch(name)]
        schema = pa.schema([reader.schema.field(name) for name in kept])
        with pq.ParquetWriter(file, schema) as writer:
            for batch in reader:
                writer.write_batch(batch.select(kept))
    except (pa.ArrowException, KeyError, TypeError) as error:
        told = str(error).partition("\n")[0]
        raise Mistake(f"{file.stem}: the table cannot be read as Arrow: {told}") from error


def records_as(records: Sequence[T], kind: type[T], form: Form) -> Any:
    """Dataclasses as a list of them, or as a table with a column a field."""
    check_form(form, Form)
    if form == "list":
        return list(records)
    names = kind.__annotations__
    rows = [asdict(cast(Any, record)) for record in records]
    return table_as(pa.table({name: [row[name] for row in rows] for name in names}), form)


def quoted(items: Sequence[str | int]) -> str:
    """Ids as `--items` takes them."""
    if isinstance(items, str):
        raise Mistake(f"items={items!r}: give a list of ids")
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(map(str, items))
    return text.getvalue()


def check_form(form: str, allowed: Any) -> None:
    """Raise Mistake unless `form` is of a Literal's."""
    if form not in get_args(allowed):
        raise Mistake(f"to={form!r}: must be one of {', '.join(get_args(allowed))}")


def table_as(table: pa.Table, form: TableForm) -> Any:
    """An Arrow table in the form that is asked for. Raises Mistake where there is no such form."""
    check_form(form, TableForm)
    if form == "pyarrow":
        return table
    try:
        return table.to_pandas()
    except ImportError as error:
        raise Mistake("to='pandas': pandas is not installed: pip install pandas") from error
