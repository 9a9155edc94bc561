"""TensorBoard's event files in RUN/trackers/tensorboard, written by tensorboardX."""

from __future__ import annotations

from tensorboardX import SummaryWriter

from trainer.observe.trackers.tracker import Tracked

FLUSH_SECONDS = 10


class TensorBoard:
    """Steps after the one that a start goes on from are forgotten: they are trained again."""

    def __init__(self, tracked: Tracked) -> None:
        folder = tracked.folder / "tensorboard"
        self._writer = SummaryWriter(
            str(folder), purge_step=tracked.step + 1, flush_secs=FLUSH_SECONDS
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
