"""One rank of a run that trains on and on, with faults that files in its folder switch on.

    python -m tests.monitoring.worker DATA FOLDER      with RANK, WORLD_SIZE, ... set

FOLDER/stall: rank 1 finishes no further step. FOLDER/starve: batches come late.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.test_training import small_config
from trainer.distributed.hooks import Hooks
from trainer.loader.prefetch import BatchStream
from trainer.observe.progress import SilentProgress
from trainer.run.folder import RunSpec
from trainer.train import run_worker


def main(data: str, folder: Path) -> None:
    config = small_config(
        training={"epochs": 100_000, "log_every_steps": 5},
        evaluation={"every_epochs": 5, "k": (20,)},
        checkpoint={"every_steps": 40},
        negatives={"log_q": "streaming"},
        metrics={"enabled": True},
    )
    spec = RunSpec("ml-100k", config, data, str(folder / "run"), run_id="the-same-start")
    BatchStream.__next__ = late_when_starved(BatchStream.__next__, folder)  # type: ignore[method-assign]
    hooks = Hooks(
        on_serving=lambda rank, address: tell(folder / f"address-{rank}", address),
        on_step=lambda step: stall(folder),
    )
    run_worker(spec, SilentProgress(), hooks)


def tell(file: Path, text: str) -> None:
    """Write in one go: the test reads it as soon as it is there."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(file)


def stall(folder: Path) -> None:
    while os.environ["RANK"] == "1" and (folder / "stall").exists():
        time.sleep(0.2)


def late_when_starved(read: Callable[[Any], Any], folder: Path) -> Callable[[Any], Any]:
    def late(stream: Any) -> Any:
        if (folder / "starve").exists():
            time.sleep(0.5)
        return read(stream)

    return late


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
