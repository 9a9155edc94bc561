"""OUT of a comparison: one that was begun with the same flags is gone on with, no other is touched.

OUT/comparison.json     what it compares; written first
OUT/.lock               held while it runs
OUT/data/               datasets with noise
OUT/CASE-seedN/         a training, and its result.json
OUT/results.json, OUT/report.html
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.base.mistake import Mistake
from trainer.compare.flags import CompareArguments
from trainer.data.schema import Dataset
from trainer.files.filesystems import is_uri
from trainer.files.json_files import read_json, write_json

MARKER = "comparison.json"
OF_NO_MATTER = ("data", "out", "workers", "address")
"""Flags that change no result; of the data the digest counts."""


@contextmanager
def own_folder(arguments: CompareArguments, dataset: Dataset) -> Iterator[Path]:
    """OUT, made or gone on with, for this comparison alone.

    Raises:
        Mistake: where it holds something else, or another comparison; where one works in it now.
    """
    if is_uri(arguments.out):
        raise Mistake(f"--out {arguments.out}: a comparison needs a folder of this machine")
    folder = Path(arguments.out)
    flags = {name: v for name, v in asdict(arguments).items() if name not in OF_NO_MATTER}
    wanted = {"dataset": dataset.digest, **flags}
    _check(folder, {name: list(v) if isinstance(v, tuple) else v for name, v in wanted.items()})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks
            _take(lock, folder)
        if not (folder / MARKER).exists():
            write_json(folder / MARKER, wanted)
        yield folder


def _take(lock: Any, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Mistake(
            f"another comparison works in {folder}: wait for it, or choose another --out"
        ) from error


def _check(folder: Path, wanted: dict[str, Any]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or not ((folder / MARKER).exists() or _is_empty(folder)):
        raise Mistake(f"{folder} is there already and holds no comparison: choose another --out")
    if not (folder / MARKER).exists():
        return
    before = read_json(folder / MARKER)
    if before == wanted:
        return
    known = before if isinstance(before, dict) else {}
    changed = [
        f"{name.replace('_', '-')}: was {known.get(name)}, now {value}"
        for name, value in wanted.items()
        if known.get(name) != value
    ]
    raise Mistake(
        f"{folder} was begun with other flags ({'; '.join(changed)}): give those, or choose "
        "another --out"
    )


def _is_empty(folder: Path) -> bool:
    return {each.name for each in folder.iterdir()} <= {".lock"}
