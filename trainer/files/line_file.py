"""Files of JSON lines that grow while a run goes on, and that a crash may tear anywhere."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.base.transient import patiently
from trainer.files.storage import StoragePath, file_size, names_file, read_range, write_whole

logger = logging.getLogger(__name__)
REWRITE_SECONDS = 30.0
"""An object store cannot append: a file of lines is written anew at most so often."""
REWRITE_SHARE = 0.05
"""And takes at most this share of the time, however long the file has become."""
TAIL_BYTES = 1 << 20
Record = dict[str, Any]


def read_records(path: StoragePath) -> list[Record]:
    """Whole lines of a file, as JSON objects; none where there is no file.

    A line that a crash has torn, or that is no object, is left out.
    """
    return _records(_lines_of(path))


def last_record(path: StoragePath) -> Record:
    """The last whole line of a file that may be long; empty where there is none."""
    size = file_size(path)
    if size < 0:
        return {}
    tail = bytes(read_range(path, max(size - TAIL_BYTES, 0), size))
    return (_records(_split(tail)) or [{}])[-1]


def _records(lines: list[str]) -> list[Record]:
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: str) -> Record | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lines_of(path: StoragePath) -> list[str]:
    if not path.is_file():
        return []
    return _split(patiently(path.read_bytes, f"reading {path}"))


def _split(data: bytes) -> list[str]:
    """Lines that end; splitlines would break them at other characters than a newline, too."""
    return [line.decode(errors="replace") for line in data.split(b"\n")[:-1]]


class LineFile:
    """A growing file of lines; in an object store it is written anew now and then.

    There writing is slow, and is a thread's: `append` never waits for it.
    """

    def __init__(self, path: StoragePath) -> None:
        self.path = path
        self._lines: list[str] | None = None
        self._unwritten = False
        self._written_at = time.monotonic()
        self._pause = REWRITE_SECONDS
        self._changing = threading.Lock()
        self._writing = threading.Lock()
        self._whole_end = False

    def append(self, line: str) -> None:
        """One line, whole or not at all. Raises OSError where there is no room for it."""
        if isinstance(self.path, Path):
            self._append_to(self.path, line)
            return
        with self._changing:
            self._known().append(line)
            self._unwritten = True
        if time.monotonic() - self._written_at > self._pause and not self._writing.locked():
            threading.Thread(target=self._flush_quietly, name="tandem-lines", daemon=True).start()

    def _append_to(self, path: Path, line: str) -> None:
        size = path.stat().st_size if path.exists() else 0
        # A crash may have torn the line before.
        start = b"" if self._whole_end or not size or self._ends_well() else b"\n"
        try:
            with names_file(path), path.open("ab") as stream:
                stream.write(start + line.encode() + b"\n")
            self._whole_end = True
        except OSError:  # a full disk takes the beginning of it
            os.truncate(path, size)
            raise

    def flush(self) -> None:
        """Have every line appended so far be there for others. From any thread."""
        if isinstance(self.path, Path):
            return
        with self._writing:
            with self._changing:
                lines, unwritten = list(self._known()), self._unwritten
                self._unwritten = False
            if not unwritten:
                return
            started = time.monotonic()
            try:
                self.path.write_text("".join(f"{line}\n" for line in lines))
            except OSError:
                self._unwritten = True
                raise
            finally:
                self._written_at = time.monotonic()
            self._pause = max(REWRITE_SECONDS, (self._written_at - started) / REWRITE_SHARE)

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except OSError as error:  # the next one may get through
            logger.warning("%s is not written: %s", self.path, error)

    def read(self) -> list[str]:
        """The lines so far; none where there is no file."""
        with self._changing:
            return list(self._known()) if not isinstance(self.path, Path) else _lines_of(self.path)

    def keep(self, wanted: Callable[[Record], bool]) -> None:
        """Keep the lines that are whole and wanted: all of those, or, killed meanwhile, all."""
        lines = self.read()
        kept = [line for line in lines if (record := _record(line)) is not None and wanted(record)]
        ragged = isinstance(self.path, Path) and self.path.is_file() and not self._ends_well()
        if len(kept) < len(lines) or ragged:
            self._lines = kept
            write_whole(self.path, "".join(f"{line}\n" for line in kept))

    def _ends_well(self) -> bool:
        assert isinstance(self.path, Path)
        size = self.path.stat().st_size
        return size == 0 or read_range(self.path, size - 1, size) == b"\n"

    def _known(self) -> list[str]:
        if self._lines is None:
            self._lines = _lines_of(self.path)
        return self._lines
