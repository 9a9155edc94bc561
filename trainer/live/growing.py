"""Columns of a file of JSON lines that grows, at the cost of what came since the last look."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trainer.files.storage import StoragePath, modified_at

Columns = dict[str, list[Any]]
Record = dict[str, Any]
SEAM_BYTES = 256
"""Before the place read up to, compared at each look: a resumed run's file is another one."""


class GrowingColumns:
    """{key: values in order} of a file, as far as `read` has seen it.

    None stands where a line lacks a key or its value is not finite. Lines that are no JSON object,
    which a crash may leave, are passed over.
    """

    def __init__(self, path: StoragePath) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self.columns: Columns = {"step": []}
        self.newest: list[Record] = []
        """The last line as it stands; empty before the first."""
        self._offset, self._seam, self._changed_at = 0, b"", -math.inf

    def read(self) -> Columns:
        """Take in the lines that came since the last call."""
        if not self._path.is_file():
            self._forget()
            return self.columns
        data = self._since_last()
        if data is None:
            self._forget()
            data = self._since_last()
        if data:
            self._take(data)
        return self.columns

    def _since_last(self) -> bytes | None:
        """What follows the place read up to; None where the file is another one by now."""
        start = self._offset - len(self._seam)
        if isinstance(self._path, Path):
            with self._path.open("rb") as stream:
                stream.seek(start)
                data = stream.read()
        else:
            changed_at = modified_at(self._path)
            if changed_at == self._changed_at:
                return b""
            data, self._changed_at = self._path.read_bytes()[start:], changed_at
        return data[len(self._seam) :] if data.startswith(self._seam) else None

    def _take(self, data: bytes) -> None:
        whole = data[: data.rfind(b"\n") + 1]  # the last line may be half written
        self._offset += len(whole)
        self._seam = (self._seam + whole)[-SEAM_BYTES:]
        for line in whole.split(b"\n"):
            record = _record(line)
            if record is not None:
                self._append(record)

    def _append(self, record: Record) -> None:
        rows = len(self.columns["step"])
        for key in record:
            if key not in self.columns:
                self.columns[key] = [None] * rows
        for key, values in self.columns.items():
            values.append(finite(record.get(key)))
        self.newest = [record]


def finite(value: Any) -> Any:
    """The value; None for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(line: bytes) -> Record | None:
    try:
        value = json.loads(line) if line else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
