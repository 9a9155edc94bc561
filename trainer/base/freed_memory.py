"""Memory that is freed stays with the process, for what is to come."""

from __future__ import annotations

import ctypes
from functools import lru_cache

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt."""
LARGEST_KEPT = 32 << 20
"""Bytes of the largest block that is kept: glibc's limit."""
KEPT = 512 << 20
"""Bytes that stay at most at the end of its heap."""
TAKEN_AT_ONCE = 64 << 20
"""Bytes that the heap grows by; the system gives a page when it is first written."""


@lru_cache
def keep_freed_memory() -> bool:
    """Have the C library keep blocks that are freed; False where it is not glibc.

    Windows and batches are megabytes each, and as many come as go. Otherwise each is given back to
    the system and taken anew, a fault a page: a tenth of the loader's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {MMAP_THRESHOLD: LARGEST_KEPT, TRIM_THRESHOLD: KEPT, TOP_PAD: TAKEN_AT_ONCE}
    return all(mallopt(parameter, value) for parameter, value in wanted.items())
