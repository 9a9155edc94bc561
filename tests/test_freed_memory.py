"""Blocks that are freed are taken again without asking the system."""

import resource

import numpy as np
import pytest

from trainer.base.machine import keep_freed_memory


def faults(rounds: int, size: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        np.empty(size, dtype=np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_blocks_are_taken_again() -> None:
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    size, page = 8 << 20, resource.getpagesize()
    faults(2, size)
    assert faults(50, size) < 10 * size // page, "of 50 times as many pages"
