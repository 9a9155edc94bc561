"""Columns in the names of folders, as Hive, Spark and pyarrow write them: dt=2026-01-01/part-0."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from trainer.files.filesystems import HUB, filesystem_of

KEY = re.compile(r"([^=]+)=.*", re.DOTALL)


def folder_columns(source: str, files: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns that the folders below SOURCE name, and notes on folders that do not agree.

    What stands above SOURCE says nothing: `user=7/log.parquet`, named as it is, has no such column.
    Below a pattern it is the folders from its first `*`, `?` or `[` on.
    """
    keys = {_keys_below(_fixed_part(source), each) for each in files}
    if len(keys) == 1:
        return next(iter(keys)), ()
    if any(keys):
        shown = " and ".join(sorted(f"{'/'.join(each) or 'none'}" for each in keys)[:3])
        return (), (f"folders below {source} name different columns ({shown}): none is read",)
    return (), ()


def _fixed_part(source: str) -> str:
    """The folder that SOURCE names, or the one that its pattern begins in."""
    if source.startswith(HUB):
        if glob.has_magic(source):
            return re.split(r"[*?\[]", source)[0].rpartition("/")[0]
        return source.rpartition("/")[0] if source.endswith(".parquet") else source
    filesystem, path = filesystem_of(source)
    if not filesystem.isfile(path) and filesystem.isdir(path):
        return str(path)
    parts = PurePosixPath(path).parts
    fixed = 0
    while fixed < len(parts) - 1 and (
        not glob.has_magic(parts[fixed])
        or filesystem.exists(str(PurePosixPath(*parts[: fixed + 1])))
    ):
        fixed += 1
    return str(PurePosixPath(*parts[:fixed]))


def _keys_below(above: str, file: str) -> tuple[str, ...]:
    path = file if file.startswith(HUB) else filesystem_of(file)[1]
    between = PurePosixPath(path.removeprefix(above)).parent.parts
    found = (KEY.fullmatch(part) for part in between)
    return tuple(each[1] for each in found if each is not None)
