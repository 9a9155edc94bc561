"""`tandem.prepare`: `tandem prepare` on files, or on tables in memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.api.data_frames import Source, is_table, write_table
from trainer.base.mistake import Mistake
from trainer.base.typed import read_as
from trainer.data.schema import Dataset
from trainer.prepare.pipeline import PrepareArguments
from trainer.prepare.pipeline import prepare as prepare_files


def prepare(source: Source, out: str | Path, options: Mapping[str, Any]) -> Dataset:
    """Prepare, print what is in the dataset, and open it.

    A table is written to a temporary Parquet file first: `prepare` reads a source more than once,
    and as many rows as a disk holds.
    """
    given = {"source": source, "out": out, **options}
    tables = {name: value for name, value in given.items() if is_table(value)}
    with ExitStack() as stack:
        names: dict[str, str] = {}
        if tables:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="tandem-")))
            for name, table in tables.items():
                file = folder / f"{name}.parquet"
                write_table(table, file)
                given[name], names[str(file)] = file, f"the table {name!r}"
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
        try:
            prepare_files(read_as(PrepareArguments, plain))
        except Mistake as mistake:
            raise Mistake(_named(str(mistake), names)) from mistake
    return Dataset.load(plain["out"])


def _named(message: str, names: Mapping[str, str]) -> str:
    """A message that speaks of tables instead of the files they were written to."""
    for file, name in names.items():
        message = message.replace(file, name)
    return message
