"""Reads that fail now and would succeed in a moment: tried again, then told as faults."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)
WAIT_SECONDS = (0.5, 2.0, 8.0)
"""Between one try and the next."""
LASTING = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EINVAL,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    }
)
"""What another try does not change: it is the user's to mend."""
T = TypeVar("T")


def is_lasting(error: OSError) -> bool:
    """Whether it is about names, rights or room, and not about a disk or a network of now."""
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return isinstance(error, kinds) or error.errno in LASTING


def patiently(read: Callable[[], T], what: str) -> T:
    """`read()`, tried again where a disk or a network fails it: an EIO, ESTALE, a reset connection.

    Args:
        what: for the log: what is read.

    Raises:
        OSError: the first that lasts, or the last of all tries.
    """
    for wait in WAIT_SECONDS:
        try:
            return read()
        except OSError as error:
            if is_lasting(error):
                raise
            logger.warning("%s: %s; tried again in %g s", what, error, wait)
            time.sleep(wait)
    return read()
