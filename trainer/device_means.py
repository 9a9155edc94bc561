"""Means of 0-d tensors that stay on their device until they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class DeviceMeans:
    """Running sums of 0-d tensors, kept on their device until `read`.

    `add` never waits for the device. `read` does, once: it is for every `log_every_steps` steps.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one observation of each value; tensors are 0-d and are not kept."""
        for name, value in values.items():
            detached = value.detach().float()
            if name in self._sums:
                self._sums[name] += detached
                self._counts[name] += 1
            else:
                self._sums[name] = detached.clone()
                self._counts[name] = 1

    def read(self) -> dict[str, float]:
        """The means since the last call, and start anew. One device-to-host sync."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()  # the sync
        counts = list(self._counts.values())
        means = {
            name: total / count for name, total, count in zip(self._sums, sums, counts, strict=True)
        }
        self._sums.clear()
        self._counts.clear()
        return means
