"""A folder that is there whole or not at all, and whose making touches nothing of anybody else's.

    with whole_folder("DATA") as folder:
        write(folder / "a.parquet")
    # DATA is there; had the body raised, nothing would be

It is made in a neighbour of DATA with a name drawn by chance, and renamed:

    PARENT/.tandem-k3x9_a1q/owner.json   whose it is; locked as long as its process lives
                            new/         what becomes DATA
                            old/         what DATA held before, while it is replaced
                            replaced.json    which files of old/ may go

What a killed command left behind goes away with the next command for the same folder: `old` back
to its place if that is empty, then the rest. Folders without such a marker are nobody's business.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from trainer.base.mistake import Mistake
from trainer.files.filesystems import (
    check_text,
    filesystem_of,
    is_uri,
    local_path,
    reached,
    stays_within,
)
from trainer.files.json_files import read_json

PREFIX = ".tandem-"
OWNER, NEW, OLD, REPLACED = "owner.json", "new", "old", "replaced.json"
MOST_MARKER_BYTES = 1 << 16
IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)

Replaces = Callable[[Path], Iterable[str]]
"""Given the folder that is replaced, once it stands aside: names of its files that may go. Raises
where it is not the folder that was meant; it is put back then."""


@contextmanager
def whole_folder(
    out: str | Path, replaces: Replaces | None = None, scratch: Path | None = None
) -> Iterator[Path]:
    """A new local folder, empty, that becomes OUT when the body is through.

    Args:
        replaces: OUT is there already and is replaced; None: it must not be there.
        scratch: where the files of an OUT behind a URI are kept until they are sent; left out,
            the system's temporary folder.

    Raises:
        Mistake: where OUT is there, or is being made by another command.
    """
    check_text(str(out), "OUT")
    if is_uri(out):
        if replaces is not None:
            raise Mistake(f"{out} cannot be replaced in place: name another folder")
        with _sent(str(out), scratch) as folder:
            yield folder
        return
    target = local_path(out) if replaces is None else local_path(out).resolve()
    clear_leftovers(target)
    if replaces is None and _is_there(target):
        raise Mistake(f"{out} exists already: remove it, or name another folder")
    with _parents_of(target), _claimed(target) as beside:
        folder = beside / NEW
        folder.mkdir()
        yield folder
        if replaces is None:
            _rename(folder, target)
        else:
            _replace(beside, target, replaces)


def _is_there(path: Path) -> bool:
    """Whether something has that name, a link to nothing too; raises on what can be no name."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _rename(folder: Path, target: Path) -> None:
    """Put a folder in place, if nothing has come there meanwhile."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in IN_THE_WAY:
            raise
        raise Mistake(
            f"{target} was made by another command meanwhile and stays as it is: "
            "remove it and start again, or name another folder"
        ) from error


def _replace(beside: Path, target: Path, replaces: Replaces) -> None:
    old = beside / OLD
    try:
        target.rename(old)
    except FileNotFoundError as error:
        raise Mistake(f"{target} was taken away meanwhile: start again") from error
    try:
        names = list(replaces(old))
        (beside / REPLACED).write_text(json.dumps(names))
        _rename(beside / NEW, target)
    except BaseException:
        if _is_there(target):
            raise Mistake(
                f"{target} was made by another command meanwhile; what it held before is {old}"
            ) from None
        old.rename(target)
        raise
    _remove_files(old, names)


def _remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove these files of a folder, then all of its folders that are empty."""
    for name in names:
        if stays_within(name):
            (folder / name).unlink(missing_ok=True)
    for below in sorted(folder.rglob("*"), reverse=True):
        _remove_if_empty(below)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    """Make the folders above; take them away again if the body raises."""
    made = [each for each in target.parents if not each.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Mistake(f"{error.filename} is a file: OUT {target} cannot lie in it") from error
    try:
        yield
    except BaseException:
        for each in made:
            _remove_if_empty(each)
        raise


@contextmanager
def _claimed(target: Path) -> Iterator[Path]:
    """A neighbour of `target` that says whose it is; at the end all of it goes but `old`."""
    with ExitStack() as stack:
        beside = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target.parent))
        stack.callback(_clear, beside)
        # Locked before it has its name: no other command finds a marker that nobody holds.
        marker = stack.enter_context((beside / "marker").open("w"))
        with suppress(OSError):  # a filesystem without locks: leftovers stay there
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner = {"out": target.name, "pid": os.getpid(), "host": socket.gethostname()}
        marker.write(json.dumps(owner))
        marker.flush()
        (beside / "marker").rename(beside / OWNER)
        yield beside


def _clear(beside: Path) -> None:
    """Take a claimed folder away; one that still holds something keeps its marker."""
    shutil.rmtree(beside / NEW, ignore_errors=True)
    if (beside / OLD).exists() or (beside / NEW).exists():
        return
    for name in (REPLACED, OWNER, "marker"):
        (beside / name).unlink(missing_ok=True)
    _remove_if_empty(beside)


def clear_leftovers(target: Path) -> None:
    """Undo what commands for this folder left when they were killed; refuse while one runs."""
    if not target.parent.is_dir():
        return
    for beside in sorted(target.parent.glob(f"{PREFIX}*")):
        owner = _owner_of(beside)
        if owner is None or owner.get("out") != target.name:
            continue
        with (beside / OWNER).open() as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Mistake(
                    f"{target} is being made by another command (process {owner.get('pid')} on "
                    f"{owner.get('host')}): wait for it, or name another folder"
                ) from error
            except OSError:
                continue
            _undo(beside, target)


def _owner_of(beside: Path) -> dict[str, object] | None:
    if beside.is_symlink():
        return None
    try:
        owner = read_json(beside / OWNER, MOST_MARKER_BYTES)
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def _undo(beside: Path, target: Path) -> None:
    """Bring back what a killed command had set aside, or finish taking it away."""
    old = beside / OLD
    if old.exists() and not _is_there(target):
        old.rename(target)
    elif old.exists() and not (beside / NEW).exists():  # killed after the last rename
        with suppress(OSError, ValueError):
            names = read_json(beside / REPLACED)
            _remove_files(old, [name for name in names if isinstance(name, str)])
    _clear(beside)


@contextmanager
def _sent(uri: str, scratch: Path | None) -> Iterator[Path]:
    """A temporary folder whose files are sent to a URI, what describes them last."""
    filesystem, inner = filesystem_of(uri)
    with reached(uri):
        if filesystem.exists(inner):
            raise Mistake(f"{uri} exists already: remove it, or name another folder")
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tandem-", dir=scratch) as temporary:
        folder = Path(temporary) / NEW
        folder.mkdir()
        yield folder
        files = [each for each in folder.rglob("*") if each.is_file()]
        # Whoever finds the description at the top finds everything.
        files.sort(key=lambda each: (each.parent == folder and each.suffix == ".json", each))
        with reached(uri), _claimed_uri(filesystem, uri, inner) as sent:
            for each in files:
                sent.append(f"{inner}/{each.relative_to(folder)}")
                filesystem.put_file(str(each), sent[-1])


@contextmanager
def _claimed_uri(filesystem: Any, uri: str, inner: str) -> Iterator[list[str]]:
    """A list of what the body sends, taken away again if it raises; for one command at a time.

    A store has no rename: of two commands that find each other's marker, at least one gives up.
    """
    marker = f"{inner}/{PREFIX}{uuid.uuid4().hex}"
    sent: list[str] = []
    filesystem.pipe_file(marker, b"")
    try:
        filesystem.invalidate_cache()
        others = [each for each in filesystem.find(inner) if not each.endswith(marker)]
        if others:
            raise Mistake(
                f"{uri} was made by another command meanwhile (it holds {others[0]}): "
                "remove it and start again, or name another folder"
            )
        yield sent
    except BaseException:
        for each in sent:
            with suppress(FileNotFoundError):
                filesystem.rm_file(each)
        raise
    finally:
        with suppress(FileNotFoundError):
            filesystem.rm_file(marker)
