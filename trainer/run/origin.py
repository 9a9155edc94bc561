"""The run that a new run's first values come from: `train --start-from RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trainer.base.mistake import Mistake
from trainer.base.typed import Range
from trainer.data.schema import Dataset
from trainer.files.json_files import committed
from trainer.files.storage import StoragePath


@dataclass(frozen=True)
class Origin:
    """Where a run's first values come from."""

    run: str
    """Folder or URI of the run."""
    step: Annotated[int, Range(least=0, below=2**63)]
    """Of its checkpoint."""


def check_origin(run: str, checkpoints: StoragePath, digest: str, dataset: Dataset) -> None:
    """Raise Mistake where `run` has nothing to give to a run on `dataset`.

    Args:
        checkpoints, digest: of `run`; the digest of the data it was trained on.
    """
    if digest not in dataset.lineage:
        raise Mistake(
            f"--start-from {run}: its data are not those in {dataset.path}, nor what these were "
            f"made from (digest {digest[:12]}, now {dataset.digest[:12]}), so a row's id is "
            "somebody else's; add to its data by `tandem prepare NEW DATA --append`, or leave "
            "--start-from out"
        )
    if not committed(checkpoints):
        raise Mistake(
            f"--start-from {run}: it has no finished checkpoint; train it to its first one "
            "(`tandem resume`), or leave --start-from out"
        )


def check_same_origin(path: StoragePath, then: Origin | None, asked: str | None) -> None:
    """Raise Mistake where the run in `path` is gone on with, from another origin than its own."""
    if asked is not None and (then is None or then.run != asked):
        came = "started anew" if then is None else f"started from {then.run}"
        raise Mistake(
            f"--start-from {asked}: {path} has {came}, and --resume goes on from its own "
            "checkpoints; leave --start-from out, or choose another --out"
        )
