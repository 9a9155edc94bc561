"""0-d tensors of each step that stay on their device until they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


class StepValues:
    """The values of the steps since the last reading, kept on the device as they are.

    `add` runs nothing there. `read` waits for it, once: it is for every `log_every_steps` steps.
    """

    def __init__(self) -> None:
        self._names: list[tuple[str, ...]] = []
        self._values: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one step's values: detached 0-d tensors, of any dtype."""
        self._names.append(tuple(values))
        self._values.extend(values.values())

    def read(self) -> list[dict[str, float]]:
        """Each step's values since the last call, and start anew. One device-to-host sync."""
        if not self._names:
            return []
        together = torch.stack([value.float() for value in self._values])
        values = iter(together.tolist())  # the sync
        steps = [{name: next(values) for name in names} for names in self._names]
        self._names, self._values = [], []
        return steps


def means_of(steps: list[dict[str, float]], rows: Sequence[int]) -> dict[str, float]:
    """The mean of each value over the rows of the steps that have it.

    Of steps with different numbers of rows those with the most alone: an epoch's short last batch
    has fewer negatives, and so a loss of another scale.
    """
    found: dict[str, list[float]] = {}
    for step, own in zip(steps, rows, strict=True):
        for name, value in step.items() if own == max(rows) else ():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
