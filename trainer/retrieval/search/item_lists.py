"""Lists of item rows of different lengths, one a query, as values and row pointers (CSR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.jagged import Jagged


@dataclass(frozen=True)
class ItemLists:
    """List i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Tensor
    """int64, all the lists end to end."""
    offsets: Tensor
    """int64 [n + 1], from 0 to len(values)."""

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """int64 [n]."""
        return self.offsets.diff()

    def owners(self) -> Tensor:
        """int64, for every value the list it belongs to."""
        lists = torch.arange(len(self), device=self.values.device)
        return lists.repeat_interleave(self.lengths, output_size=self.values.numel())

    def slice(self, start: int, stop: int) -> ItemLists:
        """Lists start..stop-1, without copying the values."""
        offsets = self.offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return ItemLists(self.values[first:last], offsets - first)

    def keep(self, wanted: Tensor) -> ItemLists:
        """The same lists with only the values where `wanted` is true."""
        kept = torch.bincount(self.owners()[wanted], minlength=len(self))
        return ItemLists(self.values[wanted], torch.nn.functional.pad(kept.cumsum(0), (1, 0)))

    def padded(self, num_lists: int) -> ItemLists:
        """Empty lists at the end, up to `num_lists`."""
        missing = num_lists - len(self)
        return ItemLists(self.values, torch.cat([self.offsets, self.offsets[-1:].expand(missing)]))

    def to(self, device: torch.device) -> ItemLists:
        return ItemLists(self.values.to(device), self.offsets.to(device))

    def bags(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(values, lengths) in numpy, each list cut to its last `limit`: for the feature store."""
        values, offsets = self.values.numpy(), self.offsets.numpy()
        lengths = np.diff(offsets)
        if limit is not None:
            from_end = np.repeat(offsets[1:], lengths) - np.arange(len(values))
            values, lengths = values[from_end <= limit], np.minimum(lengths, limit)
        return values, lengths

    @staticmethod
    def from_jagged(jagged: Jagged) -> ItemLists:
        """From the loader's numpy form, whose offsets need not start at zero."""
        first, last = int(jagged.offsets[0]), int(jagged.offsets[-1])
        values = jagged.values[first:last].astype(np.int64)
        return ItemLists(torch.from_numpy(values), torch.from_numpy(jagged.offsets - first))

    @staticmethod
    def from_lists(lists: list[list[int]]) -> ItemLists:
        """From Python lists; for a handful of queries."""
        lengths = torch.tensor([0, *map(len, lists)])
        values = torch.tensor([value for row in lists for value in row], dtype=torch.int64)
        return ItemLists(values, lengths.cumsum(0))
