"""Where a page may be written: over one of its kind, over nothing that is somebody else's."""

from __future__ import annotations

from pathlib import Path

from trainer.base.mistake import Mistake
from trainer.files.storage import StoragePath, storage_path

HEAD_BYTES = 4096
"""A page's title is within them."""


def free_place(path: str | StoragePath, title: str, flag: str, example: str) -> StoragePath:
    """The place of a page.

    Args:
        title: what the titles of pages of the kind begin with.
        flag: that names another place.
        example: a name of such a page.

    Raises:
        Mistake: where something else is there already, or no file can be.
    """
    out = storage_path(path) if isinstance(path, str) else path
    if isinstance(out, Path) and out.is_symlink() and not out.exists():
        raise Mistake(f"{out} is a link to what is not there: choose another {flag}, or remove it")
    if not out.exists():
        above = [each for each in out.parents if each.exists()] if isinstance(out, Path) else []
        if above and not above[0].is_dir():
            raise Mistake(f"{out} cannot be written: {above[0]} is no folder")
        return out
    if not out.is_file():
        raise Mistake(f"{out} is no file: name one to write, such as {out}/{example}")
    with out.open("rb") as stream:
        if title.encode() not in stream.read(HEAD_BYTES):
            raise Mistake(f"{out} is there already and is no such page: choose another {flag}")
    return out
