"""Finding a loss that is not finite without asking the device at every step."""

import math

import torch
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the step, the rank and what to look at."""


class NonFiniteWatch(nn.Module):
    """Remembers on the device the first step whose loss was not finite, and its statistics.

        watch.observe(value, statistics, step)      # every step, no device-to-host sync
        watch.raise_if_seen(rank)                   # at logging steps: one sync

    A NaN that has reached the parameters spoils all later steps, so the first step is what matters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first_step", torch.full((), -1, dtype=torch.int64), persistent=False)
        self.register_buffer("value", torch.zeros(()), persistent=False)
        self.first_step: Tensor
        self.value: Tensor
        self._statistics: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, value: Tensor, statistics: dict[str, Tensor], step: int) -> None:
        """Notes this step if its loss is the first that is not finite. No sync, no collective."""
        newly = ~torch.isfinite(value.detach()) & (self.first_step < 0)
        self.first_step = torch.where(newly, step, self.first_step)
        self.value = torch.where(newly, value.detach().to(self.value.dtype), self.value)
        for name, now in statistics.items():
            before = self._statistics.get(name, now)  # absent at the first step
            self._statistics[name] = torch.where(newly, now, before)

    def raise_if_seen(self, rank: int) -> None:
        """Raises NonFiniteLossError if any step so far was not finite. One device-to-host sync."""
        step = int(self.first_step)  # device-to-host sync
        if step < 0:
            return
        seen = {name: float(value) for name, value in self._statistics.items()}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in seen.items())
        raise NonFiniteLossError(
            f"loss {float(self.value)} at step {step} on rank {rank} ({shown}). {_advice(seen)}"
        )


def _advice(statistics: dict[str, float]) -> str:
    spoiled = [name for name, value in statistics.items() if not math.isfinite(value)]
    if any(name.startswith("logq") for name in spoiled):
        return "log Q is not finite: look at the item counts, an item drawn has a count of 0."
    if "temperature" in spoiled or "negative_temperature" in spoiled:
        return "The learned temperature diverged: lower its learning rate, or fix it."
    if any(name.endswith("score_mean") for name in spoiled):
        return "Embeddings are not finite: lower the learning rates, or clip the gradient norm."
    return "Scores are finite but the loss is not: raise the temperature or look at the weights."
