"""Extra candidates drawn from the whole catalog: the same for any number of ranks.

Draw i of step t is a hash of (seed, epoch, t, i): each rank computes its own slice alone, and
W ranks with E draws each hold together what one rank with W * E draws holds.
"""

from typing import Literal

import numpy as np

from trainer.base.mistake import Mistake

Distribution = Literal["uniform", "popularity"]

_INCREMENT = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class CandidateSampler:
    """Draws item rows with replacement.

    count_I: positive train interactions of each item. An item without any is never drawn: nothing
    is known of it. With "popularity" the others are drawn in proportion to it, else alike.
    """

    def __init__(self, count_I: np.ndarray, distribution: Distribution, seed: int) -> None:
        self._seed = seed
        self._trained_n = np.flatnonzero(count_I)
        self._cumulative_n: np.ndarray | None = None
        if len(self._trained_n) == 0:
            raise Mistake("no item has a positive train interaction, so none can be drawn")
        if distribution == "popularity":
            self._cumulative_n = np.cumsum(count_I[self._trained_n], dtype=np.int64)

    def draw(self, epoch: int, step: int, start: int, stop: int) -> np.ndarray:
        """Draws start..stop of a step's global sample: item rows, int64 [stop - start]."""
        counter = np.arange(start, stop, dtype=np.int64)
        random = hash_counter(hash_key(self._seed, epoch, step), counter)
        if self._cumulative_n is None:
            drawn = (random % np.uint64(len(self._trained_n))).astype(np.int64)
        else:
            place = (random % np.uint64(self._cumulative_n[-1])).astype(np.int64)
            drawn = np.searchsorted(self._cumulative_n, place, side="right")
        return self._trained_n[drawn]


def hash_key(*parts: int) -> int:
    """One 64-bit number mixed from several, in order."""
    key = 0
    for part in parts:
        key = int(_mix(np.array([(key + part + _INCREMENT) & _MASK], dtype=np.uint64))[0])
    return key


def hash_counter(key: int, counter: np.ndarray) -> np.ndarray:
    """splitmix64 at places `counter` (int64) of the sequence that begins at `key`, uint64."""
    place = (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(_INCREMENT)
    return _mix(place + np.uint64(key))


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
