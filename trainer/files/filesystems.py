"""Files behind local paths and URIs, through fsspec: which filesystem, and what hinders it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from trainer.base.mistake import Mistake

FILE_SCHEME = "file://"
HUB = "hf://"
"""Hugging Face, which DuckDB reads by itself where it can (trainer/sources/hub.py)."""


def is_uri(location: str | Path) -> bool:
    """Whether a location names an object store or the like; `file://` names a local path."""
    return "://" in str(location) and not str(location).startswith(FILE_SCHEME)


def local_path(location: str | Path) -> Path:
    """The absolute path of a location that is no URI, taken letter for letter."""
    return Path(str(location).removeprefix(FILE_SCHEME)).absolute()


def absolute(location: str | Path) -> str:
    """A local path made absolute, since workers may stand in another folder; a URI as it is."""
    path = str(location)
    if is_uri(path):
        return path
    if not path:
        raise Mistake("an empty path: name a folder, or a URI")
    try:
        return str(Path(path.removeprefix(FILE_SCHEME)).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL
        raise Mistake(f"{path!r} is no path: {error}") from error


def filesystem_of(location: str | Path) -> tuple[Any, str]:
    """The fsspec filesystem of a local path or a URI, and the path in it.

    A local path is taken as it is: `::`, `~` and `%` have no meaning in it.
    """
    if not is_uri(location):
        return url_to_fs("file:///")[0], str(local_path(location))
    with reached(location):
        return filesystem_of_uri(str(location))


def filesystem_of_uri(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URI, and the path in it.

    Raises:
        Mistake: where there is none. Most of fsspec's do something when they are made: they ask a
            server, open an archive, want arguments that no URI has; each raises its own.
        OSError: where a disk or a network fails it, which may pass.
    """
    try:
        return url_to_fs(uri)
    except OSError:
        raise
    except ImportError as error:
        raise Mistake(
            f"{uri}: {error}; pip install it into Tandem's environment on every node"
        ) from error
    except Exception as error:
        raise Mistake(f"{uri}: {error}; give a folder, or for example s3://bucket/x") from error


@contextmanager
def reached(location: str | Path) -> Iterator[None]:
    """Have what an object store's client refuses be one line that names the location."""
    from botocore.exceptions import BotoCoreError, ClientError  # a tenth of a second

    try:
        yield
    except Mistake:
        raise
    except (BotoCoreError, ClientError, ValueError) as error:
        raise Mistake(
            f"{location} cannot be reached ({error}): see to its name, credentials and endpoint"
        ) from error


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Have a file that may not be read be the user's mistake."""
    try:
        yield
    except PermissionError as error:
        raise Mistake(f"{path} may not be read: see to its permissions") from error


def stays_within(name: str) -> bool:
    """Whether a file's name, as some file says it, is of a file in that folder or below it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def check_text(location: str, what: str) -> None:
    """Raise Mistake on a path that is empty or that no text can hold."""
    if not location:
        raise Mistake(f"{what} is empty: give a path")
    try:
        os.fspath(location).encode()
    except UnicodeEncodeError as error:
        raise Mistake(f"{what} {location!r} is not UTF-8: rename it") from error
