"""Means of 0-d tensors that stay on their device until they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class DeviceMeans:
    """Running sums of 0-d tensors, kept on their device until `read`.

    `add` never waits for the device. `read` does, once: it is for every `log_every_steps` steps.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None
        self._count = 0

    @torch.no_grad()
    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one observation of each value: 0-d tensors, the same names until `read`.

        Two small kernels, however many values there are.
        """
        observed = torch.stack([value.float() for value in values.values()])
        if self._sums is None:
            self._names, self._sums = tuple(values), observed
        else:
            assert self._names == tuple(values), "other values than since the last reading"
            self._sums += observed
        self._count += 1

    def read(self) -> dict[str, float]:
        """The means since the last call, and start anew. One device-to-host sync."""
        if self._sums is None:
            return {}
        means = (self._sums / self._count).tolist()  # the sync
        self._sums, self._count = None, 0
        return dict(zip(self._names, means, strict=True))
