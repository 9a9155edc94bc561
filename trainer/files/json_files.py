"""Files of a run that are read and written without torch: whole checkpoints, JSON in one go.

Whatever is read may have been written by someone else, torn by a crash, or be no file at all: it is
a regular file of bounded size, or it is not read.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from trainer.base.mistake import Mistake
from trainer.base.typed import read_as
from trainer.files.storage import StoragePath, file_size, write_whole

T = TypeVar("T")
STEP_FOLDER = "step-{:08d}"
COMMIT_FILE = "checkpoint.json"
NOTED_FILE = "steps.json"
MOST_NOTED = 100
MOST_NOTE_BYTES = 1 << 13
MOST_STEPS = 10**18
MOST_JSON_BYTES = 64 << 20
_STEP_NAME = re.compile(r"step-(\d{8,18})")


def committed(folder: StoragePath) -> list[StoragePath]:
    """Finished checkpoints, oldest first: those that the folder's listing has, or that were noted
    there, since a listing may lag behind what was written."""
    paths = {*_steps(folder), *(folder / STEP_FOLDER.format(step) for step in _noted(folder))}
    return [path for path in sorted(paths, key=step_of) if (path / COMMIT_FILE).is_file()]


def note_newest(folder: StoragePath, step: int) -> None:
    """Before the checkpoint of `step` is finished: whoever goes on looks for it by name."""
    steps = [*map(step_of, committed(folder)[-MOST_NOTED:]), step]
    write_json(folder / NOTED_FILE, {"steps": steps})


def _noted(folder: StoragePath) -> list[int]:
    """Steps whose checkpoints may be there; none where the note is missing or says something else
    (a stranger may have written it)."""
    try:
        steps = read_json(folder / NOTED_FILE, MOST_NOTE_BYTES)["steps"]
    except (Mistake, KeyError, TypeError):
        return []
    most = steps[: MOST_NOTED + 1] if isinstance(steps, list) else []
    return [step for step in most if type(step) is int and 0 <= step < MOST_STEPS]


def leftovers(folder: StoragePath, before: StoragePath) -> list[StoragePath]:
    """Checkpoints older than `before` that are not whole: nobody writes them any more."""
    older = [path for path in _steps(folder) if step_of(path) < step_of(before)]
    return [path for path in older if not (path / COMMIT_FILE).is_file()]


def _steps(folder: StoragePath) -> list[StoragePath]:
    """Checkpoints' folders by step; whatever else lies among them is not ours."""
    if not folder.exists():
        return []
    return sorted(filter(is_checkpoint_folder, folder.iterdir()), key=step_of)


def is_checkpoint_folder(path: StoragePath) -> bool:
    """Whether its name is one that a checkpoint's folder has."""
    return _STEP_NAME.fullmatch(path.name) is not None


def step_of(path: StoragePath) -> int:
    """The training step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def write_json(path: StoragePath, value: Any) -> None:
    """Write whole or not at all."""
    write_whole(path, json.dumps(value, indent=1))


def read_json(path: StoragePath, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """A file of JSON as plain data.

    Raises:
        Mistake: naming the file, where it is no regular file, too large, or no JSON.
        OSError: where it cannot be read.
    """
    size = file_size(path)
    if size < 0:  # a FIFO would be waited for, a device has no end
        what = "is no file" if path.exists() else "does not exist"
        raise Mistake(f"{path} {what}")
    if size > most_bytes:
        raise Mistake(f"{path} has {size:,} bytes; at most {most_bytes:,} are read")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{path} is no JSON: {json_problem(error)}") from error


def json_problem(error: ValueError | RecursionError) -> str:
    """What hinders `json.loads`, without the words of Python's own workings."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"no {error.encoding} text at byte {error.start}"
    return "a number of thousands of digits" if "digits" in str(error) else str(error)


def read_json_as(path: StoragePath, kind: type[T]) -> T:
    """A file of JSON as a dataclass. Raises Mistake, which names the file and what is wrong."""
    try:
        return read_as(kind, read_json(path))
    except Mistake as mistake:
        raise Mistake(f"{path}: {str(mistake).removeprefix(f'{path} ')}") from mistake
