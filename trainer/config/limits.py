"""Limits that fields of several sections have."""

from __future__ import annotations

from typing import Annotated

from trainer.base.typed import Range

MOST_COLUMNS = 2**24
"""Rows or negatives of a step, at most: they are counted in float32."""
MOST_STEPS = 10**12
Columns = Annotated[int, Range(least=0, most=MOST_COLUMNS)]
Steps = Annotated[int, Range(least=1, most=MOST_STEPS)]
