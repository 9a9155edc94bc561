"""Rows of a batch as positions of their users' sequences, packed for a causal model.

Rows are the events trained on, as ever; in the order of an epoch those of a user's chunk stay
together (`order.py`). So a batch has as many targets on each rank whatever their users' lengths,
and order, exactly-once and resuming are those of rows. A chunk that a batch begins or ends within
is read anew from its beginning by the batch that goes on with it.

Shapes: B rows, M sequences, D distinct items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.data.events.marks import Marks
from trainer.data.feature_bags import Bags, keyed_jagged
from trainer.data.jagged import Jagged, concatenate, take_ranges
from trainer.data.packing import Packed, pack
from trainer.loader.batch import Batch
from trainer.loader.row_table import begins_sequence

if TYPE_CHECKING:
    from trainer.loader.assemble import Piece


@dataclass(frozen=True)
class SequenceReading:
    """How rows are read as sequences."""

    length: int
    """Most items that a row sees."""
    with_histories: bool = False
    """Say of each row which items it sees."""
    marks: Marks | None = None
    """What the events say beside their items' ids."""
    attributes: tuple[str, ...] = ()
    """Keys ("event.genre") that the sequences' items are looked up by, too."""
    dense: tuple[str, ...] = ()
    """Numbers and vectors among such."""

    def packed(self, user_B: np.ndarray, pieces: Sequence[Piece]) -> Packed:
        """The sequences of a batch's rows."""
        parts: list[Jagged] = []
        firsts: list[np.ndarray] = []
        sizes: list[np.ndarray] = []
        seen: list[np.ndarray] = []
        row = 0
        for window, start, stop in pieces:
            assert window.histories is not None
            start_n, stop_n = (bound[start:stop] for bound in window.histories[1:])
            is_first_n = begins_sequence(window.user_n[start:stop], start_n)
            first_m = np.flatnonzero(is_first_n)
            rows_m = np.diff(np.append(first_m, stop - start))
            last_m = first_m + rows_m - 1
            parts.append(take_ranges(window.histories.values, start_n[first_m], stop_n[last_m]))
            firsts.append(first_m + row)
            sizes.append(rows_m)
            seen.append(stop_n - start_n)
            row += stop - start
        rows_M = np.concatenate(sizes)
        sequence_B = np.repeat(np.arange(len(rows_M)), rows_M)
        return pack(
            concatenate(parts),
            np.concatenate(firsts),
            sequence_B,
            np.concatenate(seen),
            self.with_histories,
            self.marks is not None,
        )


def with_items_of(
    batch: Batch,
    packed: Packed,
    place: int,
    bags: Mapping[str, Bags],
    dense: Mapping[str, Tensor],
) -> Batch:
    """The batch with the sequences' distinct items as bags of "history", its key number `place`.

    Args:
        bags: by key, what else they are looked up by; the keys after it.
        dense: by key, their numbers and vectors.
    """
    distinct = len(packed.item_D)
    batch = batch.with_bags(max(distinct, batch.item_S.shape[0]))
    features, stride = batch.features, batch.item_S.shape[0]
    items = (packed.item_D.numpy(), np.ones(distinct, dtype=np.int64))
    own = keyed_jagged(("history", *bags), (items, *bags.values()), stride)
    here = features.offset_per_key()[place]
    lengths = features.lengths().view(len(features.keys()), stride)
    own_lengths = own.lengths().view(len(own.keys()), stride)
    values, sizes = features.values(), list(features.length_per_key())
    sizes[place:place] = own.length_per_key()
    keys = list(features.keys())
    keys[place:place] = own.keys()
    return replace(
        batch,
        dense={**batch.dense, **dense},
        features=KeyedJaggedTensor(
            keys=keys,
            values=torch.cat([values[:here], own.values(), values[here:]]),
            lengths=torch.cat([lengths[:place], own_lengths, lengths[place:]]).view(-1),
            stride=stride,
            length_per_key=sizes,
            offset_per_key=np.cumsum([0, *sizes]).tolist(),
        ),
    )
