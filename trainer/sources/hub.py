"""Parquet on Hugging Face, `hf://datasets/OWNER/NAME@REVISION/PATH`, by DuckDB's own reader.

Its extension `httpfs` opens files and patterns and knows revisions (`@main`, `@~parquet` for what
the hub made of other formats). Where it is not on the machine nothing is fetched: huggingface_hub
reads such paths through fsspec, if it is there, or the user is told.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import PurePosixPath

import duckdb

from trainer.base.mistake import Mistake
from trainer.files.filesystems import HUB
from trainer.sources import sql
from trainer.sources.sources import list_files

FORM = re.compile(r"hf://(datasets|spaces)/[^/@]+/[^/@]+(@[^/]+)?(/.*)?")


def files_at(connection: duckdb.DuckDBPyConnection, source: str, what: str = "SOURCE") -> list[str]:
    """Files of a path, folder, glob or URI, sorted, as `list_files`; of the hub by DuckDB."""
    if not source.startswith(HUB):
        return list_files(source, what)
    if FORM.fullmatch(source) is None:
        raise Mistake(
            f"{source} names no dataset of the hub: write hf://datasets/OWNER/NAME, with "
            "@REVISION and a path or a pattern behind it if need be"
        )
    if load_reader(connection):
        return _found(connection, source)
    if importlib.util.find_spec("huggingface_hub"):
        return list_files(source, what)
    raise Mistake(
        f"{source} is read by DuckDB's extension 'httpfs', which is not on this machine. Install "
        "it once, where there is a network: python -c \"import duckdb; duckdb.sql('INSTALL "
        "httpfs')\"; or pip install huggingface_hub; or download the files"
    )


def load_reader(connection: duckdb.DuckDBPyConnection) -> bool:
    """Load DuckDB's reader of the hub; False: it is not on this machine."""
    try:
        connection.execute("LOAD httpfs")
    except duckdb.Error:
        return False
    return True


def _found(connection: duckdb.DuckDBPyConnection, source: str) -> list[str]:
    is_folder = PurePosixPath(source).suffix != ".parquet" and "*" not in source
    pattern = f"{source.rstrip('/')}/**/*.parquet" if is_folder else source
    try:
        rows = connection.execute(
            f"SELECT file FROM glob({sql.text(pattern)}) ORDER BY file"
        ).fetchall()
    except duckdb.Error as error:
        raise Mistake(
            f"{source} cannot be reached ({sql.first_line(error)}): see to its name, to the "
            "network, and for private data to DuckDB's secret of the hub"
        ) from error
    files = [str(file) for (file,) in rows]
    if not files:
        raise Mistake(
            f"{pattern} matches no file: only Parquet is read there; the hub keeps other formats "
            "as Parquet under the revision @~parquet"
        )
    wrong = next((each for each in files if not each.endswith(".parquet")), None)
    if wrong is not None:
        raise Mistake(f"{wrong} is no .parquet file, which is all that is read of the hub")
    return files
