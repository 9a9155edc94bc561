"""A run's configuration: frozen dataclasses, one a section. A field's docstring is its `--help`.

Presets (presets.py) are values of `Config`; the command line overrides fields by
`--section.field VALUE`. Type, choices and range of a field are its annotation's, and hold however a
config comes about: by a flag, a file, or Python (typed.py). Configs stop at the `build_*`
functions: classes below them take plain arguments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from trainer.base.mistake import require
from trainer.base.typed import check, read_as
from trainer.config.data_section import DataConfig
from trainer.config.evaluation_section import EvaluationConfig
from trainer.config.loss_section import LossConfig
from trainer.config.metrics_section import MetricsConfig
from trainer.config.model_section import ModelConfig
from trainer.config.negatives_section import NegativesConfig
from trainer.config.optimizer_section import OptimizerConfig
from trainer.config.training_section import CheckpointConfig, TrainingConfig


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """By "section.name", as flags name them, the values of a config as JSON has it."""
    return {
        f"{section}.{name}": value
        for section, fields in config.items()
        for name, value in fields.items()
    }


@dataclass(frozen=True)
class Config:
    """Everything a run is: with the data, the seed and the number of workers it fixes the run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        check(self, "")
        drawn = self.negatives.uniform + self.negatives.popularity + self.negatives.queue
        require(
            self.training.global_batch_size > 1 or drawn > 0,
            "training.global_batch_size=1 leaves no negatives in the batch: raise it, or set "
            "negatives.uniform or negatives.popularity",
        )
        require(
            not self.loss.ring or self.negatives.queue == 0,
            f"loss.ring with negatives.queue={self.negatives.queue}: the queue holds every rank's "
            "candidates, which the ring never gathers; set one of them only",
        )
        self._check_loss()
        require(
            not self.loss.mask_history or self.model.use_history or self.model.tower == "sequence",
            "loss.mask_history masks the items of the row's history, which the batch only holds "
            "with model.use_history or model.tower='sequence'",
        )
        require(
            self.evaluation.every_epochs == 0
            or self.data.windows
            or "validation" not in self.data.train_splits,
            "data.train_splits has 'validation', so evaluating on it while training says nothing: "
            "set evaluation.every_epochs to 0",
        )

    def _check_loss(self) -> None:
        """What the loss needs of other sections."""
        kind = self.loss.kind
        require(
            not kind.needs_uniform or self.negatives.uniform > 0,
            f"loss.name={kind.name} with negatives.uniform=0: all negatives follow "
            "popularity, which pushes popular items below all others, and this loss corrects for "
            "none of it; set negatives.uniform (2048), or take ssm, sl or bsl",
        )
        require(
            kind.usual_temperature is not None or self.model.similarity == "cosine",
            f"loss.name={kind.name} with model.similarity=dot: its margin is on cosines; set "
            "model.similarity to cosine",
        )
        require(
            not kind.needs_log_q or self.negatives.log_q != "none",
            f"loss.name={kind.name} with negatives.log_q=none: the loss is a correction by log Q; "
            "set negatives.log_q to counts or streaming, or take ssm",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for RUN/config.json."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Any) -> Config:
        """Inverse of `to_json`; Mistake names the first field that is unknown or wrong."""
        return read_as(Config, data)

    @property
    def digest(self) -> str:
        """Short hash: ranks compare it at start."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
