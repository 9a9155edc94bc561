"""Presets: named configurations that the command line starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trainer.base.mistake import Mistake
from trainer.base.typed import nearest
from trainer.config.default_preset import default_preset
from trainer.config.evaluation_section import EvaluationConfig
from trainer.config.loss_section import LossConfig
from trainer.config.model_section import ModelConfig
from trainer.config.negatives_section import NegativesConfig
from trainer.config.optimizer_section import OptimizerConfig
from trainer.config.preset_file import is_path, read_preset
from trainer.config.sections import Config
from trainer.config.training_section import CheckpointConfig, TrainingConfig
from trainer.data.schema import Dataset
from trainer.files.storage import storage_path


def _demo() -> Config:
    """Small and quick: what `make demo` trains on the bundled generator's data."""
    return Config(
        model=ModelConfig(tower="mlp", dim=32, output_dim=32, hidden=(64,), use_history=True),
        loss=LossConfig(name="ssm", temperature=0.07),
        optimizer=OptimizerConfig(table_learning_rate=0.1, schedule="linear"),
        training=TrainingConfig(epochs=4, global_batch_size=2048, log_every_steps=20),
        evaluation=EvaluationConfig(every_epochs=2, k=(20,)),
    )


def _gowalla() -> Config:
    """`gowalla-mf` and the order of visits: each user's last three items beside the user.

    The published split is by time: its test part is each user's last fifth. `tandem prepare
    --in-order` keeps the order, and holds out for validation what came last.

    2026-11-25, test Recall@20 .2045, NDCG@20 .1715 after 505 s, two workers on two cores:
        tandem prepare data/gowalla G --in-order --validation-share 0.2
        tandem train gowalla --data G --out R --workers 2 --data.train-splits train validation
        tandem evaluate R --split test
    """
    factors = _gowalla_mf()
    return replace(
        factors,
        model=replace(factors.model, tower="history", history_pooling="places", sequence_length=3),
        loss=factors.loss.but(negative_weight=1.4),
        optimizer=replace(factors.optimizer, table_learning_rate=0.05, warmup_steps=0),
        training=replace(factors.training, epochs=16),
    )


def _gowalla_mf() -> Config:
    """Matrix factorisation for the LightGCN Gowalla split, as the papers have it.

    BSL in its authors' form over shared uniform negatives, from a spectral start. RowWiseAdagrad's
    first step on a row is as long as the rate allows whatever the gradient, and would undo the
    row's start: a warm-up lets its sums grow first. Two tables on two workers are dealt whole:
    row-wise moves twice the bytes, a fifth of a step here.

    2026-11-25, test Recall@20 .1932, NDCG@20 .1630 after 1,490 s, one worker on one core:
        tandem train gowalla-mf --data G --out R --workers 1 --data.train-splits train validation
        tandem evaluate R --split test
    """
    return Config(
        model=ModelConfig(
            tower="mf",
            dim=256,
            dropout=0.1,
            spectral_start=1.0,
            init_std=0.02,
            sharding="table_wise",
        ),
        loss=LossConfig(name="bsl", temperature=0.1, negative_weight=1.3, precision="bf16"),
        negatives=NegativesConfig(in_batch=False, uniform=2048, log_q="none"),
        optimizer=OptimizerConfig(
            tables="rowwise_adagrad",
            table_learning_rate=0.06,
            schedule="linear",
            warmup_steps=500,
        ),
        training=TrainingConfig(epochs=54, global_batch_size=4096),
        checkpoint=CheckpointConfig(keep=1),
    )


def _gowalla_ccl() -> Config:
    """`gowalla` with the cosine contrastive loss: SimpleX, the order of visits in its history.

    A margin of .4 from a spectral start; at the paper's .9 hardly any negative is over it.

    2026-11-25, test Recall@20 .1928, NDCG@20 .1515 after 563 s, one worker on one core:
        tandem train gowalla-ccl --data G --out R --workers 1 --data.train-splits train validation
        tandem evaluate R --split test
    """
    gowalla = _gowalla()
    return replace(
        gowalla,
        loss=LossConfig(name="ccl", margin=0.4, negative_weight=150.0, precision="bf16"),
        training=replace(gowalla.training, epochs=12),
    )


def _ml_100k() -> Config:
    """MLP towers over ids, history and attributes for MovieLens 100K.

    2026-11-25, test Recall@20 .2436, NDCG@20 .1840 after 22 s, one worker on one shared
    core, on the data that docs/quality.md prepares:
        tandem train ml-100k --data ML --out R --workers 1 --data.train-splits train validation
        tandem evaluate R --split test
    """
    return Config(
        model=ModelConfig(
            tower="mlp", use_history=True, user_attributes=True, item_attributes=True, dropout=0.2
        ),
        loss=LossConfig(name="ssm", temperature=0.1),
        optimizer=OptimizerConfig(table_learning_rate=0.05, schedule="linear"),
        training=TrainingConfig(epochs=15, global_batch_size=1024, log_every_steps=20),
    )


def _ml_100k_mf() -> Config:
    """Plain matrix factorisation for MovieLens 100K: what `tandem compare` puts the losses on.

    2026-11-23, t = .15, 6 epochs, 3 seeds: test Recall@20 .1833 +- .0042 (docs/quality.md).
    """
    return Config(
        model=ModelConfig(tower="mf", dropout=0.1),
        loss=LossConfig(name="ssm", temperature=0.1),
        negatives=NegativesConfig(in_batch=False, uniform=1024, log_q="none"),
        optimizer=OptimizerConfig(table_learning_rate=0.1, schedule="linear"),
        training=TrainingConfig(epochs=10, global_batch_size=1024, log_every_steps=50),
        checkpoint=CheckpointConfig(keep=1),
    )


def _beauty() -> Config:
    """The causal transformer on data of short sequences, such as Amazon's reviews.

    2026-11-26, test HR@10 .0994, NDCG@10 .0585 after 10 minutes of one core, ahead of the best
    published, .0928 and .0531 (docs/quality.md):
        tandem prepare s.csv D --in-order --split leave-last-out --history-length 50
        tandem train beauty --data D --out R --workers 1
        tandem evaluate R --split test
    """
    return Config(
        model=ModelConfig(
            tower="sequence",
            dim=256,
            sequence_length=50,
            use_user_id=False,
            dropout=0.2,
            spectral_start=1.0,
            init_std=0.02,
        ),
        loss=LossConfig(
            name="bsl", temperature=0.1, negative_weight=1.2, precision="bf16", mask_same_user=True
        ),
        negatives=NegativesConfig(in_batch=True, uniform=1024, log_q="counts"),
        optimizer=OptimizerConfig(table_learning_rate=0.05, schedule="linear"),
        training=TrainingConfig(epochs=6, global_batch_size=1024),
        checkpoint=CheckpointConfig(keep=1),
        evaluation=EvaluationConfig(every_epochs=2, k=(10, 20), metric="ndcg@10"),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "default": lambda: default_preset(None),
    "demo": _demo,
    "gowalla": _gowalla,
    "gowalla-mf": _gowalla_mf,
    "gowalla-ccl": _gowalla_ccl,
    "beauty": _beauty,
    "ml-100k": _ml_100k,
    "ml-100k-mf": _ml_100k_mf,
}


def is_run(preset: str) -> bool:
    """Whether a preset is named by the path or URI of a run."""
    return preset not in PRESETS and is_path(preset) and not preset.endswith(".toml")


def find_preset(name: str, dataset: Dataset | None = None) -> Config:
    """The preset called `name`, or that of a TOML file, or what a run was trained with.

    Args:
        dataset: what `default` is fitted to.

    Raises:
        Mistake: with the nearest names where there is none.
    """
    if name in PRESETS:
        return default_preset(dataset) if name == "default" else PRESETS[name]()
    if is_path(name):
        return read_preset(storage_path(name))
    hint = nearest(name, PRESETS)
    raise Mistake(f"unknown preset {name!r}: {hint}there are {', '.join(PRESETS)}")
