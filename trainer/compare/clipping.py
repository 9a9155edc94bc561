"""TFRS's floor under Q, for a comparison to show what it costs; no setting of a run."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor

from trainer.model import build
from trainer.model.log_q import FrequencyCorrection

LEAST_LOG_Q = math.log(1e-6)
"""Below this TFRS clips."""


class ClippedCorrection(FrequencyCorrection):
    """log Q from counts that never falls below LEAST_LOG_Q."""

    def _exact(self, counts_X: Tensor) -> Tensor:
        return super()._exact(counts_X).clamp(min=LEAST_LOG_Q)


@contextmanager
def clipped_log_q() -> Iterator[None]:
    """Models that are built in this process meanwhile have a `ClippedCorrection`."""
    with patch.object(build, "FrequencyCorrection", ClippedCorrection):
        yield
