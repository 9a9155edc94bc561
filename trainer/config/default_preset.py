"""The preset `default`: what is known to be robust, by what the dataset says of itself.

Chosen on validation parts of data with times and without (docs/quality.md, "The preset default").
"""

from __future__ import annotations

from dataclasses import replace

from trainer.config.evaluation_section import EvaluationConfig
from trainer.config.loss_section import LossConfig
from trainer.config.model_section import ModelConfig
from trainer.config.negatives_section import NegativesConfig
from trainer.config.optimizer_section import OptimizerConfig
from trainer.config.sections import Config
from trainer.config.training_section import CheckpointConfig, TrainingConfig
from trainer.data.schema import Dataset

USERS_EVALUATED = 20_000
"""Users sampled for an evaluation while training: its error is then below a hundredth of itself."""
SPECTRAL_BYTES = 4 << 30
"""A spectral start holds its vectors of all users and items on every rank: no more than this."""
ROWS_FOR_USERS = 15
"""Training rows a user from which on a user's own embedding helps rather than overfits."""


def default_preset(dataset: Dataset | None) -> Config:
    """A sound start on your own data, chosen by whether it has times and how large it is.

    dataset: None, where it cannot be read here: what suits data without times.
    """
    order = dataset is not None and dataset.has_timestamps and dataset.history_length > 0
    config = Config(
        model=_model(dataset, order),
        loss=LossConfig(name="bsl", temperature=0.1, negative_weight=1.2),
        negatives=NegativesConfig(in_batch=True, uniform=1024, log_q="counts"),
        optimizer=OptimizerConfig(table_learning_rate=0.05, schedule="linear"),
        training=TrainingConfig(epochs=12, global_batch_size=_batch_size(dataset)),
        checkpoint=CheckpointConfig(keep=1),
        evaluation=EvaluationConfig(every_epochs=1, patience=2, users=USERS_EVALUATED),
    )
    if order or not config.model.spectral_start:
        return config
    return _gently_from_the_graph(config)


def _gently_from_the_graph(config: Config) -> Config:
    """Inner products from the smoothed graph's scores on, which training then mends in small steps.

    Cosines have no room for popularity, and steps that are large beside a row undo its start: with
    some ten rows a user what was smoothed is worth more than what can be learnt.
    """
    return replace(
        config,
        model=replace(config.model, similarity="dot", init_std=0.005),
        loss=replace(config.loss, temperature=1.0),
        negatives=NegativesConfig(in_batch=False, uniform=1024, log_q="none"),
        optimizer=replace(config.optimizer, table_learning_rate=0.02),
        training=replace(config.training, epochs=10),
    )


def _model(dataset: Dataset | None, order: bool) -> ModelConfig:
    """Places of the history where there is an order; else factors."""
    dim = 64
    table_bytes = 0
    if dataset is not None:
        table_bytes = 4 * dim * sum(map(dataset.rows_of_table, ("user", "item")))
    spectral = table_bytes <= SPECTRAL_BYTES
    model = ModelConfig(
        dim=dim,
        dropout=0.1,
        spectral_start=1.0 if spectral else 0.0,
        init_std=0.02 if spectral else 0.1,
    )
    if dataset is None or not order:
        return model
    return replace(
        model,
        tower="history",
        history_pooling="places",
        sequence_length=3,
        use_user_id=_rows(dataset) >= ROWS_FOR_USERS * dataset.num_users,
    )


def _batch_size(dataset: Dataset | None) -> int:
    """At least some hundred steps an epoch; a power of two, so that it divides by workers."""
    return 1024 if dataset is not None and _rows(dataset) < 500_000 else 4096


def _rows(dataset: Dataset) -> int:
    return dataset.splits["train"].positives


def explain(config: Config, dataset: Dataset) -> str:
    """One line: what was chosen for the dataset, and by what."""
    model = config.model
    has = "times" if dataset.has_timestamps else "no times"
    reads = {
        "places": f"the last {model.sequence_length} items in their order",
        "mean": "the mean of a user's other items",
    }[model.history_pooling]
    if model.tower == "mf":
        reads = "no history" if not model.use_history else reads
    own = "and the user" if model.use_user_id else "without the user's own embedding"
    start = "begun at the graph of who took what" if model.spectral_start else "begun from noise"
    if model.similarity == "dot":
        start += ", in small steps"
    return (
        f"default, for data with {has}, {_rows(dataset):,} rows of {dataset.num_users:,} users: "
        f"{reads} {own}, {model.dim} wide, {start}, batch {config.training.global_batch_size:,}, "
        f"at most {config.training.epochs} epochs"
    )
