"""Whether a start may use a folder, and how one that fails leaves it as it was."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.base.machine import processor, usable_cpus, usable_memory_bytes
from trainer.base.mistake import Mistake
from trainer.base.run_files import (
    BESIDE_FILE,
    BESIDE_FOLDER,
    CHOICE_FILE,
    CONFIG_FILE,
    SUMMARY_FILE,
    TRIES_FILE,
    TRIES_FOLDER,
)
from trainer.base.transient import is_lasting
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.files.signs import CLOCK_FILE
from trainer.files.storage import StoragePath, remove_tree
from trainer.run.lock import RunLock

if TYPE_CHECKING:
    from trainer.run.folder import RunSpec

FILES = (
    ".lock",
    "owner.json",
    CONFIG_FILE,
    "starts.jsonl",
    "metrics.jsonl",
    "validation.jsonl",
    SUMMARY_FILE,
    TRIES_FILE,
    CHOICE_FILE,
    BESIDE_FILE,
)
FOLDERS = ("checkpoints", "trackers", TRIES_FOLDER, BESIDE_FOLDER)
BEFORE_CONFIG = {
    ".lock",
    CLOCK_FILE,
    "owner.json",
    TRIES_FILE,
    TRIES_FOLDER,
    CHOICE_FILE,
    BESIDE_FILE,
}
"""All that a start killed before config.json was written leaves behind: no run yet."""
FIXED_FIELDS = (
    ("optimizer", "tables"),
    ("training", "seed"),
    ("data", "windows"),
    ("data", "train_splits"),
    ("data", "shuffle_window_rows"),
)
"""Beside whole sections: what a checkpoint's state, or its place in the data, depends on."""


def check_kinds(path: StoragePath) -> None:
    """Raise Mistake where `path` is no folder, or something in it is not what a run has there.

    A folder in a file's place fails late and obscurely; a FIFO is waited for.
    """
    if not isinstance(path, Path):
        return
    if path.is_symlink() and not path.exists():
        raise Mistake(f"--out {path} is a link to nothing; name a folder")
    if path.exists() and not path.is_dir():
        raise Mistake(f"--out {path} is no folder; name another")
    for names, is_right, kind in (
        (FILES, Path.is_file, "file"),
        (FOLDERS, Path.is_dir, "folder"),
    ):
        for name in names:
            inner = path / name
            if (inner.exists() or inner.is_symlink()) and not is_right(inner):
                raise Mistake(f"{inner} is no {kind}, which a run has there: move it away")


def names_in(path: StoragePath) -> set[str]:
    """What is in a run's folder, without an empty folder of checkpoints and torn beginnings."""
    names = {inner.name.removesuffix(".partial") for inner in path.iterdir()}
    if not (path / CONFIG_FILE).is_file():
        names.discard(CONFIG_FILE)  # its beginning
        names.discard("starts.jsonl")  # written just before it
    if "checkpoints" in names and not any((path / "checkpoints").iterdir()):
        names.remove("checkpoints")
    return names


def is_used(path: StoragePath) -> bool:
    """Whether there is more in a folder than what a start leaves behind that was killed early."""
    return path.exists() and bool(names_in(path) - BEFORE_CONFIG)


def remove_left_over(tries: StoragePath, but: Collection[str] = ()) -> None:
    """Remove those that nobody writes, and the folder that they lie in where none is left.

    Quiet where that is not possible: the next start removes them.

    Args:
        but: names of those that stay.
    """
    with suppress(OSError):
        if not tries.exists():
            return
        found: list[StoragePath] = [each for each in tries.iterdir() if each.name not in but]
        for folder in found:
            with suppress(Mistake):  # somebody writes it
                _remove(folder)
        if isinstance(tries, Path):
            tries.rmdir()


def _remove(folder: StoragePath) -> None:
    lock = RunLock(folder)
    lock.take("removal")
    try:
        remove_tree(folder)
    finally:
        lock.release()


def exists_already(path: StoragePath, config: Config, spec: RunSpec, kept: bool) -> Mistake:
    """Why no new run begins there, with what to do.

    Args:
        config: of the run that is there.
        kept: it has a checkpoint.
    """
    then, now = config.data.windows, spec.config.data.windows
    if then == now or not kept:
        way = "go on with it" if kept else "begin it anew, for it has no checkpoint,"
        return Mistake(f"{path} exists already; choose another --out, or {way} by --resume")
    trained = "window by window" if then else "on all data at once"
    other = "--windows needs" if now else "a run without --windows needs"
    return Mistake(  # --resume would not help
        f"{path} exists already, and is trained {trained}: {other} a folder of its own; choose "
        f"another --out, and --start-from {path} to begin with what was learnt there"
    )


def check_unchanged(
    path: StoragePath, digest: str, config: Config, spec: RunSpec, dataset: Dataset
) -> None:
    """Raise Mistake where `spec` cannot go on from checkpoints made of other data or settings.

    Args:
        digest, config: of the dataset and the settings of then.
    """
    if digest not in dataset.lineage:
        raise Mistake(
            f"the data in {spec.data} changed since {path} was trained (digest "
            f"{digest[:12]}, now {dataset.digest[:12]}); resume with the "
            "data of then, add to it by `tandem prepare NEW DATA --append`, or start a new run"
        )
    then, now = config.to_json(), spec.config.to_json()
    fields = [(name, key) for name in ("model", "loss", "negatives") for key in now[name]]
    changed = [
        _changed(name, key, then[name][key], now[name][key])
        for name, key in (*fields, *FIXED_FIELDS)
        if then[name][key] != now[name][key]
    ]
    averaging = then["optimizer"]["tower_averaging"], now["optimizer"]["tower_averaging"]
    if bool(averaging[0]) != bool(averaging[1]):
        changed.append(_changed("optimizer", "tower_averaging", *averaging))
    if config.data.windows and "training.epochs" in spec.given:  # places are counted in passes
        epochs = then["training"]["epochs"], now["training"]["epochs"]
        changed += [_changed("training", "epochs", *epochs)] if epochs[0] != epochs[1] else []
    if changed:
        raise Mistake(
            f"--resume cannot change what the model and its state are ({'; '.join(changed)}); "
            "start a new run, or leave these flags as they were"
        )


def _changed(section: str, field: str, then: Any, now: Any) -> str:
    flag = f"--{section}.{field.replace('_', '-')}"
    return f"{flag}: was {json.dumps(then)}, now {json.dumps(now)}"


def absent_folders(path: StoragePath) -> list[Path]:
    """The folder and those above it that are not there, the innermost first."""
    if not isinstance(path, Path):
        return []
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(path: StoragePath, absent: list[Path]) -> None:
    """Take away what a start that failed made before it began: folders that were not there."""
    if not isinstance(path, Path):
        return
    try:
        for folder in (path / "checkpoints", *absent):
            folder.rmdir()
    except OSError:
        return  # something else is in it, or came into it: not ours


@contextmanager
def named_when_lasting(path: StoragePath) -> Iterator[None]:
    """No room, no rights, no such place: the user's mistake, named; anything else is a fault."""
    try:
        yield
    except OSError as error:
        if is_lasting(error):
            raise Mistake(f"{path} cannot be written: {error}") from error
        raise


def this_machine() -> str:
    """Where rank 0 runs, in words: host, GPU or processor, CPUs, memory."""
    import torch

    gib = usable_memory_bytes() / 2**30
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = processor()
    return f"{platform.node()}: {device}, {usable_cpus()} CPUs, {gib:.0f} GiB"
