"""Parquet files on local disks and object stores, opened alike."""

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.files import filesystems
from trainer.files.filesystems import is_uri, local_path, readable


def filesystem_of(path: str | Path) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem and the path in it of a local path or a URI.

    Schemes that pyarrow knows (file, s3, gs, hdfs) are read by its own threads; any other goes
    through fsspec, for example memory:// or abfs://.
    """
    name = str(path)
    if not is_uri(name):
        return pafs.LocalFileSystem(), str(local_path(name))
    try:
        return pafs.FileSystem.from_uri(name)
    except ValueError:
        filesystem, inner = filesystems.filesystem_of(name)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), inner


def open_parquet(path: str | Path, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open one Parquet file: memory-mapped where it is local, read ahead where it is not.

    `metadata` of an earlier opening saves reading the footer again.
    """
    filesystem, inner = filesystem_of(path)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    try:
        with readable(path):
            return pq.ParquetFile(
                inner,
                filesystem=None if local else filesystem,
                metadata=metadata,
                memory_map=local,
                pre_buffer=not local,
            )
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Mistake(f"{path} does not exist: prepare or copy the dataset again") from error
    except (pa.ArrowInvalid, OSError) as error:
        # An OSError with a number is the system's, one without of a store's a reset connection.
        if isinstance(error, OSError) and (error.errno is not None or not local):
            raise
        raise Mistake(
            f"{path} cannot be opened as Parquet ({error}): prepare or copy the dataset again"
        ) from error
