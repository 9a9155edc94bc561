"""Where torch's checkpoint writer and reader find their files: any storage, digested in passing."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from torch.distributed.checkpoint.filesystem import FileSystem

from trainer.storage import storage_path


class DigestedFiles(FileSystem):
    """Storage for torch's checkpoint writer and reader; digests what is written as it passes.

    `digests` maps names of files written through it to their SHA-256.
    """

    def __init__(self) -> None:
        super().__init__()
        self.digests: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if "w" not in mode:
            with path.open(mode) as stream:
                yield stream
            return
        with path.open(mode) as stream:
            digesting = _Digesting(stream)
            yield digesting
        self.digests[path.name] = digesting.digest.hexdigest()

    def rename(self, path: Any, new_path: Any) -> None:
        path.rename(new_path)
        self.digests[new_path.name] = self.digests.pop(path.name)

    def concat_path(self, path: Any, suffix: str) -> Any:
        return path / suffix

    def init_path(self, path: Any) -> Any:
        return storage_path(path)

    def mkdir(self, path: Any) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def exists(self, path: Any) -> bool:
        return path.exists()

    def rm_file(self, path: Any) -> None:
        path.unlink()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class _Digesting(io.RawIOBase):
    """A stream for writing front to back, which digests what it passes on."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()
