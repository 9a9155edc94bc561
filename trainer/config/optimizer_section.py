"""The config's `optimizer` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from embeddings.choices import TableOptimizer
from trainer.base.typed import Range, check
from trainer.config.limits import MOST_STEPS

Schedule = Literal["constant", "linear", "cosine"]
LearningRate = Annotated[float, Range(above=0, most=1e4)]
Decay = Annotated[float, Range(least=0, most=100)]


@dataclass(frozen=True)
class OptimizerConfig:
    """Fused optimizer of the tables, AdamW of the towers, one schedule for both."""

    tables: TableOptimizer = "rowwise_adagrad"
    """Fused into the backward pass; adam runs on GPUs only."""
    table_learning_rate: LearningRate = 0.05
    """Peak learning rate of the tables."""
    table_weight_decay: Decay = 0.0
    """On GPUs, of the rows a step touches: L2 with rowwise_adagrad, decoupled with adam. sgd,
    adagrad and CPUs have none: see loss.embedding_penalty."""
    tower_learning_rate: LearningRate = 1e-3
    """Peak learning rate of the towers (AdamW)."""
    tower_weight_decay: Decay = 0.0
    """AdamW's decoupled weight decay of matrices; biases, gates and temperatures have none."""
    tower_averaging: Annotated[float, Range(least=0, below=1)] = 0.0
    """Decay a step of the towers' moving average, which evaluation and export then use; 0: none."""
    schedule: Schedule = "constant"
    """How learning rates fall to zero over the run, after the warm-up."""
    warmup_steps: Annotated[int, Range(least=0, most=MOST_STEPS)] = 0
    """Steps over which learning rates rise from zero."""

    def __post_init__(self) -> None:
        check(self, "optimizer")
