"""Files written through Python, so that a full disk is an OSError that names the file.

Native writers end the process (torch.export's), lose the last bytes quietly (FAISS'), or name no
file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trainer.files.storage import names_file


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A new file to write; OSErrors name it."""
    with names_file(path), path.open("wb") as stream:
        yield stream
