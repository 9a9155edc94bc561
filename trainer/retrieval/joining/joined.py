"""Two models as one: their vectors side by side; an inner product is the sum of both scores.

The scores of one model may be cosines, those of the other inner products of any size: the second's
are scaled until they spread as far as the first's do, over some users and items.

Tensor shapes: n users, m items.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from trainer.data.schema import Dataset
from trainer.distributed.agreement import first_decides
from trainer.retrieval.encode import Encoder, SecondEncoder, is_known
from trainer.retrieval.known import known_at

USERS, NEIGHBOURS = 256, 32
"""In groups of neighbours: what is known of users is read a group of rows at a time."""
ITEMS = 4096


def join(first: Encoder, second: Encoder, weight: float, dataset: Dataset) -> None:
    """Put a second model beside the first. Collective.

    Args:
        weight: of the second's scores; 1: both count alike.
    """
    stand_beside(first, second, weight * ratio_of_spreads(first, second, dataset))  # collective


def ratio_of_spreads(first: Encoder, second: Encoder, dataset: Dataset) -> float:
    """How much further the first's scores spread than the second's. Collective."""
    assert first.beside is None, "of its own scores alone"
    return _spread(first, dataset) / _spread(second, dataset)  # collective


def stand_beside(first: Encoder, second: Encoder, times: float) -> None:
    """Have the second's scores, multiplied, added to the first's. No collective."""
    first.beside = SecondEncoder(second, math.sqrt(times))


def _spread(encoder: Encoder, dataset: Dataset) -> float:
    """Standard deviation of a user's scores, the mean over users; 1 where nothing is known.
    Collective; every rank encodes the same rows."""
    user_n = _groups(dataset.num_users)
    known = known_at(dataset, user_n.tolist(), encoder.marks)
    query_nD = encoder.queries(  # collective
        torch.from_numpy(user_n), known.history, known.disliked
    )
    item_m = np.linspace(0, dataset.num_items - 1, min(ITEMS, dataset.num_items)).astype(np.int64)
    item_mD = encoder.candidates(item_m)  # collective
    known_nD, known_mD = query_nD[is_known(query_nD)], item_mD[is_known(item_mD)]
    score_nm = known_nD @ known_mD.T
    spread = float(score_nm.std(dim=1).mean()) if min(score_nm.shape) > 1 else 0.0  # host sync
    return first_decides(lambda: spread if spread > 0 else 1.0)  # collective


def _groups(num_users: int) -> np.ndarray:
    """Rows of users, in groups of neighbours spread over all."""
    if num_users <= USERS:
        return np.arange(num_users)
    starts = np.linspace(0, num_users - NEIGHBOURS, USERS // NEIGHBOURS).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(NEIGHBOURS))
