"""Files of vectors beside the tables: `--item-vectors` and `--user-vectors`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from trainer.base.mistake import Mistake
from trainer.data.feature_types import Attribute
from trainer.prepare.features.attributes import Encoded
from trainer.prepare.features.vector_columns import VectorColumn
from trainer.prepare.features.vocabulary import own_name
from trainer.sources import sql
from trainer.sources.columns import Columns
from trainer.sources.hub import files_at
from trainer.sources.side_tables import side_table
from trainer.sources.text_files import suffix_of


def with_vector_files(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    paths: Sequence[str],
    columns: Columns,
    has_table: bool,
    encoded: list[Encoded],
    extends: bool,
) -> list[Encoded]:
    """The attributes with those of files of vectors; raises Mistake where a file holds none.

    has_table: there is a table of the side, whose rows those of a .npy file are.
    """
    taken = {each.attribute.name: each for each in encoded}
    for path in paths:
        for name, column in _columns_of(connection, side, path, columns, has_table).items():
            width = column.width(connection)
            if isinstance(width, str):
                raise Mistake(f"{column.label} {width}")
            if not extends:
                name = own_name(name, taken)
                taken[name] = Encoded(Attribute(name, "vector", width=width), None, column)
                continue
            known = taken.get(name)
            if known is None or known.attribute.width != width:
                held = {name: each.attribute.width for name, each in taken.items()}
                vectors = {name: width for name, width in held.items() if width}
                raise Mistake(
                    f"{column.label} holds vectors {name!r} of {width} numbers, which the extended "
                    f"dataset does not have: it has {vectors or 'none'}"
                )
            taken[name] = Encoded(known.attribute, None, column)
    return list(taken.values())


def _columns_of(
    connection: duckdb.DuckDBPyConnection, side: str, path: str, columns: Columns, has_table: bool
) -> dict[str, VectorColumn]:
    """The vectors of a file, by name."""
    if path.endswith(".npy"):
        if not has_table:
            raise Mistake(
                f"--{side}-vectors {path} has its rows in the order of --{side}s FILE: give that "
                "too, or a Parquet file with ids"
            )
        ids = f"""SELECT {side}s.row FROM side_{side} JOIN {side}s
            ON {side}s.raw = side_{side}.raw ORDER BY side_{side}.rowid"""
        return {Path(path).stem: VectorColumn(path, file=path, ids=ids)}
    files = files_at(connection, path, f"--{side}-vectors")
    if suffix_of(files[0]) != ".parquet":
        raise Mistake(f"--{side}-vectors {path} is no Parquet and no .npy file: write it as one")
    table = side_table(connection, "parquet", files, path, side, columns)
    if not table.vectors:
        raise Mistake(f"--{side}-vectors {path} has no column of lists of numbers")
    found = {}
    for name, select in table.vectors.items():
        rows, ids_found = sql.one(
            connection, f"SELECT count(raw), count(DISTINCT raw) FROM ({select})"
        )
        if rows > ids_found:
            raise Mistake(
                f"{path} has {rows - ids_found:,} ids more than once: leave one row for each {side}"
            )
        found[name] = VectorColumn(f"column {name!r} of {path}", select)
    return found
