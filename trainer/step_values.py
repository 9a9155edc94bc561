"""0-d tensors of each step that stay on their device until they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class StepValues:
    """The values of the steps since the last reading: one row a step, kept on the device.

    `add` never waits for the device. `read` does, once: it is for every `log_every_steps` steps.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one step's values: 0-d tensors, the same names until `read`. One small kernel."""
        if not self._rows:
            self._names = tuple(values)
        assert self._names == tuple(values), "other values than since the last reading"
        self._rows.append(torch.stack([value.float() for value in values.values()]))

    def read(self) -> list[dict[str, float]]:
        """Each step's values since the last call, and start anew. One device-to-host sync."""
        if not self._rows:
            return []
        rows = torch.stack(self._rows).tolist()  # the sync
        self._rows = []
        return [dict(zip(self._names, row, strict=True)) for row in rows]


def means_of(steps: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each value over steps; empty for no steps."""
    if not steps:
        return {}
    return {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
