"""Where a run stands: what a checkpoint holds beside tensors, and a resumed run goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.base.typed import read_as
from trainer.run.checkpoint_facts import DataPosition


@dataclass
class Place:
    """How far a run has come; checkpoints hold it."""

    step: int = 0
    """Steps trained."""
    position: dict[str, Any] | None = None
    """Position of the data after the last step *trained* (the pipeline has read further)."""

    @property
    def data_position(self) -> DataPosition | None:
        """`position`, as a checkpoint states it."""
        return None if self.position is None else read_as(DataPosition, self.position)

    @property
    def epoch_ended(self) -> bool:
        """Whether the last trained step was its epoch's last: the data stands at a start."""
        return self.position is not None and self.position["step"] == 0

    @property
    def epoch(self) -> int:
        """Epoch of the last trained step, from 0."""
        if self.position is None:
            return 0
        return int(self.position["epoch"]) - int(self.epoch_ended)
