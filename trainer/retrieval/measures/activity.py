"""Users by how many items they have met, in bands that are the same for all data."""

from __future__ import annotations

import torch
from torch import Tensor

BANDS = (0, 1, 5, 10, 20, 50, 100, 200, 500)
"""Least number of items met of each band; the last has no end."""


def band_of(met_q: Tensor) -> Tensor:
    """The band of each user, int64 [q], by the number of items met before."""
    edges = torch.tensor(BANDS[1:], device=met_q.device)
    return torch.bucketize(met_q, edges, right=True)


def named(band: int) -> str:
    """`5 to 9 items`."""
    least = BANDS[band]
    if band == len(BANDS) - 1:
        return f"{least} or more"
    most = BANDS[band + 1] - 1
    return str(least) if least == most else f"{least} to {most}"
