"""Paths that the user names, on any storage: a local disk, NFS, or an object store behind a URI.

`storage_path("runs/a")` is a `pathlib.Path`; `storage_path("s3://bucket/a")` is a `RemotePath`,
which has those of Path's methods that are needed, over fsspec. `StoragePath` is either. Why it is
not universal_pathlib's UPath: docs/decisions/0301-remote-paths-are-our-own.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.base.mistake import Mistake
from trainer.base.transient import patiently
from trainer.files.filesystems import FILE_SCHEME, filesystem_of_uri, is_uri


class RemotePath:
    """A file or folder of an object store. Folders are there as soon as a file is in them."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._filesystem, self._inner = filesystem_of_uri(self.uri)

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
            inner = str(path).rstrip("/")
            if inner != self._inner.rstrip("/"):  # the marker that consoles make for a folder
                yield self / inner.rpartition("/")[2]

    def open(self, mode: str = "r") -> Any:
        return self._filesystem.open(self._inner, mode)

    def read_text(self) -> str:
        return self._fresh().cat_file(self._inner).decode()

    def read_bytes(self) -> bytes:
        return self._fresh().cat_file(self._inner)

    def read_range(self, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of a file, fewer where it is shorter."""
        if end <= begin:
            return b""
        return self._filesystem.cat_file(self._inner, start=begin, end=end)

    def write_text(self, text: str) -> None:
        """Whole or not at all, as object stores do it."""
        self.write_bytes(text.encode())

    def write_bytes(self, data: bytes) -> None:
        """Likewise."""
        self._filesystem.pipe_file(self._inner, data)

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

    def size(self) -> int:
        """Bytes of a file."""
        return int(self._fresh().size(self._inner))

    def modified_at(self) -> float:
        return self._fresh().modified(self._inner).timestamp()

    def _fresh(self) -> Any:
        """The filesystem, without what it remembers of listings: other nodes write, too."""
        self._filesystem.invalidate_cache()
        return self._filesystem


StoragePath = Path | RemotePath
COPIED_AT_ONCE = 16 << 20
"""Bytes."""


def storage_path(location: str | Path | RemotePath) -> StoragePath:
    """The path of a folder, or of what a URI names; "file://" URIs are local paths."""
    if isinstance(location, Path | RemotePath):
        return location
    return RemotePath(location) if is_uri(location) else Path(location.removeprefix(FILE_SCHEME))


def modified_at(path: StoragePath) -> float:
    """When it was last written, in seconds since 1970."""
    return path.stat().st_mtime if isinstance(path, Path) else path.modified_at()


def remove_tree(path: StoragePath) -> None:
    """Delete a folder with all that is in it; quiet where that is not possible."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.remove_tree()


def copy_tree(source: StoragePath, target: StoragePath) -> None:
    """Copy a file, or a folder with all that is in it, from any storage to any other.

    Raises:
        Mistake: at a link, which may lead anywhere.
    """
    if isinstance(source, Path) and source.is_symlink():
        raise Mistake(f"{source} is a link: put what it leads to in its place")
    if source.is_file():
        with source.open("rb") as read, target.open("wb") as written:
            shutil.copyfileobj(read, written, COPIED_AT_ONCE)
        return
    target.mkdir(parents=True, exist_ok=True)
    for inner in source.iterdir():
        copy_tree(inner, target / inner.name)


def file_size(path: StoragePath) -> int:
    """Bytes of a regular file; -1 where there is none."""

    def look() -> int:
        if not path.is_file():
            return -1
        return path.stat().st_size if isinstance(path, Path) else path.size()

    return patiently(look, f"looking at {path}")


def read_range(path: StoragePath, begin: int, end: int) -> bytearray:
    """The bytes [begin, end) of a file, fewer where it is shorter; tried again where a disk or a
    network fails it."""

    def read() -> bytearray:
        if not isinstance(path, Path):
            return bytearray(path.read_range(begin, end))
        with path.open("rb", buffering=0) as stream:
            stream.seek(begin)
            data = bytearray(end - begin)
            filled = 0
            while filled < len(data) and (count := stream.readinto(memoryview(data)[filled:])):
                filled += count
            return data if filled == len(data) else data[:filled]

    return patiently(read, f"reading {path}")


def write_whole(path: StoragePath, contents: str | bytes) -> None:
    """Write all of it or nothing: to a temporary name, synced, then renamed.

    An object store writes so by itself.
    """
    data = contents.encode() if isinstance(contents, str) else contents
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with names_file(path):
            partial.write_bytes(data)
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
