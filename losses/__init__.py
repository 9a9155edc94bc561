"""Tandem's retrieval losses over streamed negatives. Imports torch alone.

    from losses import build_loss, in_batch

    loss = build_loss("ssm", temperature=0.05)
    value, statistics = loss(*in_batch(query_BD, positive_BD, positive_id_B, logq_B))

Names are those of `losses/front.py`, read at their first use: `losses.choices` alone, which the
command line reads, does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from losses.front import *  # noqa: F403
else:

    def __getattr__(name):
        front = import_module("losses.front")
        if name not in front.__all__:
            raise AttributeError(f"module 'losses' has no attribute {name!r}")
        return getattr(front, name)
