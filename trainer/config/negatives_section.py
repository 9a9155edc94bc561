"""The config's `negatives` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from trainer.base.mistake import require
from trainer.base.typed import Range, check
from trainer.config.limits import MOST_STEPS, Columns
from trainer.files.paths import LastingPath

LogQ = Literal["none", "counts", "streaming"]


@dataclass(frozen=True)
class NegativesConfig:
    """Where negatives come from; the sources add up."""

    in_batch: bool = True
    """The other rows' positives, gathered from every rank."""
    uniform: Columns = 0
    """Items drawn uniformly from the catalog a step, shared by all ranks."""
    popularity: Columns = 0
    """Items drawn by their count in train a step, shared by all ranks."""
    mined: LastingPath | None = None
    """File of hard negatives that `tandem mine` made of an earlier run: columns of their own row's
    user alone, there by construction and not by a draw, so without a log Q of their own."""
    mined_each: Annotated[int, Range(least=1, most=1000)] = 1
    """Mined negatives that a row takes in a step, others in each epoch."""
    queue: Columns = 0
    """Candidates of past steps kept as further negatives (cross-batch queue): for batches of some
    dozens of rows, where they help a little; with hundreds they change nothing."""
    queue_warmup_steps: Annotated[int, Range(least=0, most=MOST_STEPS)] = 1000
    """Steps before the queue is used: early embeddings move too fast to be kept."""
    log_q: LogQ = "counts"
    """Correction for how often an item is drawn. counts: exact, from train. streaming: estimated
    from the positives seen so far, repeats counted (after Yi et al. 2019). none: no correction."""

    distinct: bool = True
    """Encode, send and score each distinct item of a step once: exactly the same loss, in a part of
    the time where batches repeat items (dropout of the candidate tower then draws one mask an
    item)."""

    def __post_init__(self) -> None:
        check(self, "negatives")
        require(
            self.in_batch or self.uniform + self.popularity > 0,
            "there are no negatives: set negatives.in_batch, negatives.uniform or "
            "negatives.popularity",
        )
        require(
            self.uniform == 0 or self.popularity == 0,
            f"negatives.uniform={self.uniform} and negatives.popularity={self.popularity}: "
            "one kind of catalog sampling a run; in-batch negatives already follow popularity",
        )
