"""The config's `evaluation` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from trainer.base.mistake import require
from trainer.base.typed import Range, check, nearest

Measure = Literal["recall", "ndcg", "hit", "mrr", "map", "coverage"]
"""What can be watched: more is better."""
Cutoff = Annotated[int, Range(least=1, most=1_000_000)]


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on the validation split while training."""

    every_epochs: Annotated[int, Range(least=0, most=10**9)] = 0
    """Epochs between evaluations; 0: none while training."""
    patience: Annotated[int, Range(least=1, most=10**9)] | None = None
    """Stop when the metric has not risen for this many evaluations; None: never."""
    metric: str = "ndcg@20"
    """What patience watches."""
    k: Annotated[tuple[Cutoff, ...], Range(least=1, most=100)] = (10, 20, 50)
    """Cut-offs."""
    users: Annotated[int, Range(least=2, most=10**12)] | None = None
    """Users sampled for an evaluation while training; None: all."""

    def __post_init__(self) -> None:
        check(self, "evaluation")
        measure, at, cutoff = self.metric.partition("@")
        require(
            measure in get_args(Measure) and at == "@" and cutoff.isdecimal(),
            f"evaluation.metric={self.metric!r}: {nearest(measure, get_args(Measure))}must be one "
            f"of {', '.join(get_args(Measure))} at one of the cut-offs, as in ndcg@20",
        )
