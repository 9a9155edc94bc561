"""A Parquet file that cannot be decoded: damaged for good, or only out of reach at the moment.

pyarrow raises OSError for both. They are told apart by the bytes: where they can all be read, and
are not what they should be, the next try would find the same, and it is the user's to mend. Where a
disk or a network does not give them, it is a fault that is waited for, and passes or lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from trainer.base.transient import WAIT_SECONDS, is_lasting

T = TypeVar("T")
BLOCK_BYTES = 16 << 20
TWICE = 2
"""Bytes that were out of reach a moment ago are looked at again."""


class DamagedError(Exception):
    """The bytes are there and cannot be decoded."""


def decoded(decode: Callable[[], T], read_bytes: Callable[[], None]) -> T:
    """What `decode` makes of a file, tried again while its storage fails.

    Args:
        read_bytes: reads the same bytes without decoding them.

    Raises:
        DamagedError: where they can be read and cannot be decoded.
        OSError: where they cannot be read: of a name or a right at once, else after the last try.
    """
    seen, waits = 0, iter(WAIT_SECONDS)
    while True:
        try:
            return decode()
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and is_lasting(error):
                raise
            reason = str(error)
        try:
            read_bytes()
        except OSError:
            seen, wait = 0, next(waits, None)
            if wait is None:
                raise
            time.sleep(wait)
        else:
            seen += 1
            if seen == TWICE:
                raise DamagedError(reason)


def read_range(filesystem: pafs.FileSystem, path: str, begin: int, end: int) -> None:
    """Read the bytes [begin, end) of a file and drop them."""
    with filesystem.open_input_file(path) as stream:
        stream.seek(begin)
        left = end - begin
        while left > 0 and (data := stream.read(min(left, BLOCK_BYTES))):
            left -= len(data)
