"""Paths of a run on any storage: a local disk, NFS, or an object store behind a URI.

`storage_path("runs/a")` is a `pathlib.Path`; `storage_path("s3://bucket/a")` is a `RemotePath`,
which has those of Path's methods that a run needs, over fsspec. `StoragePath` is either.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from trainer.mistake import Mistake

REWRITE_SECONDS = 30.0
"""An object store cannot append: a file of lines is written anew at most so often."""


class RemotePath:
    """A file or folder of an object store. Folders are there as soon as a file is in them."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            self._filesystem, self._inner = url_to_fs(self.uri)
        except ImportError as error:
            raise Mistake(
                f"{uri}: {error}; pip install it into Tandem's environment on every node"
            ) from error
        except ValueError as error:
            raise Mistake(f"{uri}: {error}; use a folder, or s3://bucket/run") from error

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str | os.PathLike[str]) -> RemotePath:
        return RemotePath(f"{self.uri}/{os.fspath(name)}")

    def __lt__(self, other: RemotePath) -> bool:
        return self.uri < other.uri

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.uri.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def exists(self) -> bool:
        return self._fresh().exists(self._inner)

    def is_file(self) -> bool:
        return self._fresh().isfile(self._inner)

    def iterdir(self) -> Iterator[RemotePath]:
        """Files and folders in this one; none where it does not exist."""
        try:
            found = self._fresh().ls(self._inner, detail=False)
        except FileNotFoundError:
            return
        for path in found:
            yield self / str(path).rstrip("/").rpartition("/")[2]

    def open(self, mode: str = "r") -> Any:
        return self._filesystem.open(self._inner, mode)

    def read_text(self) -> str:
        return self._fresh().cat_file(self._inner).decode()

    def read_bytes(self) -> bytes:
        return self._fresh().cat_file(self._inner)

    def write_text(self, text: str) -> None:
        """Whole or not at all, as object stores do it."""
        self._filesystem.pipe_file(self._inner, text.encode())

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing to do."""

    def rename(self, other: RemotePath) -> None:
        self._filesystem.mv(self._inner, other._inner)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._fresh().rm_file(self._inner)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Everything below; quiet where there is nothing."""
        try:
            self._fresh().rm(self._inner, recursive=True)
        except FileNotFoundError:
            return

    def modified_at(self) -> float:
        return self._fresh().modified(self._inner).timestamp()

    def _fresh(self) -> Any:
        """The filesystem, without what it remembers of listings: other nodes write, too."""
        self._filesystem.invalidate_cache()
        return self._filesystem


StoragePath = Path | RemotePath


def storage_path(location: str | Path | RemotePath) -> StoragePath:
    """The path of a folder, or of what a URI names; "file://" URIs are local paths."""
    if isinstance(location, Path | RemotePath):
        return location
    if location.startswith("file://"):
        return Path(location.removeprefix("file://"))
    return RemotePath(location) if "://" in location else Path(location)


def modified_at(path: StoragePath) -> float:
    """When it was last written, in seconds since 1970."""
    return path.stat().st_mtime if isinstance(path, Path) else path.modified_at()


def remove_tree(path: StoragePath) -> None:
    """Delete a folder with all that is in it; quiet where that is not possible."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.remove_tree()


def file_digest(path: StoragePath) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(path: StoragePath, text: str) -> None:
    """Write all of `text` or nothing: to a temporary name, synced, then renamed.

    An object store writes so by itself.
    """
    if not isinstance(path, Path):
        path.write_text(text)
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with names_file(path):
            partial.write_text(text)
            with partial.open() as stream:
                os.fsync(stream.fileno())
            partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def names_file(path: StoragePath) -> Iterator[None]:
    """Have OSErrors name the file: those of a write do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error


class LineFile:
    """A growing file of lines; in an object store it is written anew now and then."""

    def __init__(self, path: StoragePath) -> None:
        self.path = path
        self._lines: list[str] | None = None
        self._unwritten = False
        self._written_at = time.monotonic()

    def append(self, line: str) -> None:
        """One line, whole or not at all."""
        if isinstance(self.path, Path):
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a") as stream:
                    stream.write(line + "\n")
            except OSError:  # a full disk takes the beginning of it
                os.truncate(self.path, size)
                raise
            return
        self._known().append(line)
        self._unwritten = True
        if time.monotonic() - self._written_at > REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Have every line appended so far be there for others."""
        if self._unwritten:
            self.path.write_text("".join(f"{line}\n" for line in self._known()))
            self._unwritten, self._written_at = False, time.monotonic()

    def read(self) -> list[str]:
        """The lines so far; none where there is no file."""
        if not isinstance(self.path, Path):
            return list(self._known())
        return self.path.read_text().splitlines() if self.path.exists() else []

    def rewrite(self, lines: list[str]) -> None:
        """Put other lines in their place: all of them, or, killed meanwhile, none."""
        self._lines = list(lines)
        write_whole(self.path, "".join(f"{line}\n" for line in lines))

    def _known(self) -> list[str]:
        if self._lines is None:
            self._lines = self.path.read_text().splitlines() if self.path.exists() else []
        return self._lines
