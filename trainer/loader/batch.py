"""One step's rows of one rank, in the form that TorchRec's pipeline moves to the device.

Shapes: B = rows of this rank, E = extra candidates of this rank, S = B + E, K = feature keys.

    features, stride S       rows 0..B-1                      rows B..S-1
      "user", "history", ..  the row's own bag                empty
      "item", "item.genre"   the row's positive               an extra candidate

Where rows are read as sequences, those of a user's chunk stand together, and bag i of "history" is
the i-th distinct item of all the rank's sequences, whatever row i is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from trainer.data.packing import Packed
from trainer.loader.column_plan import ColumnPlan


@dataclass(frozen=True)
class Batch(Pipelineable):
    """A batch of one rank. Padding rows have weight 0, user and item -1 and empty bags.

    A row of weight 2 is the row twice, in the loss and all that is a mean over rows. Columns are
    draws, not rows: `count_S`, and with it log Q, counts rows and not their weights.
    """

    features: KeyedJaggedTensor
    """Bags of ids (int64) for every key, stride S; lengths int64 [K * S]."""
    user_B: Tensor
    """User of each row, int64; -1 in padding."""
    item_S: Tensor
    """Item of each row, then the extra candidates, int64; -1 in padding."""
    feedback_B: Tensor
    """1 positive, -1 disliked, int8; 1 in padding."""
    weight_B: Tensor
    """Weight of each row, float32, not negative: 1 where the data has none; 0 for padding."""
    count_S: Tensor
    """Positive train interactions of each item, int64; 0 in padding."""
    global_weight: Tensor | None
    """Sum of the weights of all ranks' rows, float32, 0-d: their number where the data has no
    weights. None: it has, and no rank knows those of the others (the task asks them)."""
    local_rows: int
    """Those of this batch: its rows less padding."""
    plan: ColumnPlan | None
    """The step's columns and what this rank has to do with them; None: not made yet (the task makes
    it, with all ranks)."""
    step: int
    """Number of this batch in its epoch, from 0."""
    position: dict[str, Any]
    """Where the loader goes on once this batch is trained: plain JSON, for the checkpoint."""
    mined: int = 0
    """The last B * so many of the extra candidates are the rows' own, row after row: columns of
    their users alone."""
    dense: dict[str, Tensor] = field(default_factory=dict)
    """By key, numbers [B or S, 1] and vectors [B or S, W]: B of a query key, S of a candidate's."""
    history_V: Tensor | None = None
    """Items of the key "history", where its values are rows of tables; None: they are the items."""
    sequences: Packed | None = None
    """The sequences whose positions the rows are; None: rows are read one by one."""

    @property
    def local_batch_size(self) -> int:
        return self.user_B.shape[0]

    def with_bags(self, number: int) -> "Batch":
        """The same with bags of nothing at its end, `number` in all."""
        features, missing = self.features, number - self.item_S.shape[0]
        if missing == 0:
            return self
        keys = features.keys()
        return replace(
            self,
            features=KeyedJaggedTensor(
                keys=keys,
                values=features.values(),
                lengths=F.pad(features.lengths().view(len(keys), -1), (0, missing)).view(-1),
                stride=number,
                length_per_key=features.length_per_key(),
                offset_per_key=features.offset_per_key(),
            ),
            item_S=F.pad(self.item_S, (0, missing), value=-1),
            count_S=F.pad(self.count_S, (0, missing)),
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """A copy on `device`."""
        features = self.features.to(device, non_blocking=non_blocking)
        return self._with(features, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory, from which copies to a GPU run beside its work."""
        return self._with(self.features.pin_memory(), Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until the work queued on `stream` is done."""
        self.features.record_stream(stream)
        for tensor in (self.user_B, self.item_S, self.feedback_B, self.weight_B):
            tensor.record_stream(stream)
        for tensor in (self.count_S, *self.dense.values()):
            tensor.record_stream(stream)
        if self.global_weight is not None:
            self.global_weight.record_stream(stream)
        if self.history_V is not None:
            self.history_V.record_stream(stream)
        for part in (self.plan, self.sequences):
            if part is not None:
                part.moved(lambda tensor: _recorded(tensor, stream))

    def _with(self, features: KeyedJaggedTensor, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            features=features,
            user_B=move(self.user_B),
            item_S=move(self.item_S),
            feedback_B=move(self.feedback_B),
            dense={key: move(each) for key, each in self.dense.items()},
            weight_B=move(self.weight_B),
            count_S=move(self.count_S),
            global_weight=None if self.global_weight is None else move(self.global_weight),
            plan=None if self.plan is None else self.plan.moved(move),
            history_V=None if self.history_V is None else move(self.history_V),
            sequences=None if self.sequences is None else self.sequences.moved(move),
        )


def _recorded(tensor: Tensor, stream: torch.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor
