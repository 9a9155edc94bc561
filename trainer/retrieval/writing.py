"""Files written through Python, so that a full disk is an OSError that names the file.

Native writers end the process (torch.export's), lose the last bytes quietly (FAISS'), or name no
file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A new file to write; OSErrors name it."""
    try:
        with path.open("wb") as stream:
            yield stream
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error
