"""Which of the rows that rare ids share is an id's: a hash of it says so, without a map.

Shapes: n = ids.
"""

from __future__ import annotations

import numpy as np

from trainer.data.candidates import hash_counter


def shared_row_of(id_n: np.ndarray, shared: int) -> np.ndarray:
    """Rows 0..shared-1 of ids, int64 [n]."""
    return (hash_counter(0, id_n) % np.uint64(shared)).astype(np.int64)
