"""One hostile command: what lies in its folder, what is typed there, and what may come of it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

BESIDE = {"notes.txt": b"mine\n", "out.old/a": b"a\n", "out.partial/b": b"", "D.old/c": b"c"}
"""The user's own files beside whatever a command does; nothing may happen to them."""


@dataclass(frozen=True)
class Put:
    """Something that lies in a case's folder: one of file, link, FIFO, folder or copied fixture."""

    name: str
    content: bytes | None = None
    link: str | None = None
    fixture: str | None = None
    """A file or folder of `Fixtures`, copied."""
    fifo: bool = False
    change: Callable[[Path, random.Random], None] | None = None
    """Done to it, with random numbers of `seed`."""
    seed: int = 0

    def lay(self, folder: Path, fixtures: Path) -> None:
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.content is not None:
            path.write_bytes(self.content)
        elif self.link is not None:
            path.symlink_to(self.link)
        elif self.fifo:
            os.mkfifo(path)
        elif self.fixture is None:
            path.mkdir(exist_ok=True)
        elif (fixtures / self.fixture).is_dir():
            shutil.copytree(fixtures / self.fixture, path)
        else:
            shutil.copy2(fixtures / self.fixture, path)
        if self.change is not None:
            self.change(path, random.Random(self.seed))


@dataclass(frozen=True)
class Case:
    """A command line in a folder of its own."""

    command: str
    arguments: tuple[str, ...]
    puts: tuple[Put, ...] = ()
    out: str | None = None
    """What it writes: whole or as before."""
    writes: tuple[str, ...] = ()
    """Patterns of further files that the command may write or replace."""
    named: tuple[str, ...] = ()
    """One of these is in the message of a failure; empty: anything may be."""
    rows: int | None = None
    """Rows of a source that is well formed: prepare's count is known."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def lay(self, folder: Path, fixtures: Path) -> None:
        for name, content in BESIDE.items():
            Put(name, content).lay(folder, fixtures)
        for put in self.puts:
            put.lay(folder, fixtures)
