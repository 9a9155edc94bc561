"""A trained run opened again, on any number of ranks: for answers, or to go on with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from trainer.base.mistake import Mistake
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.distributed.agreement import together
from trainer.distributed.ranks import Ranks
from trainer.files.storage import StoragePath
from trainer.model.build import build_model
from trainer.model.two_tower import TwoTower
from trainer.run.asked.open_data import open_data
from trainer.run.checkpoint_read import Found, OnBytes, load, newest_sound
from trainer.run.folder import RunFolder


@dataclass(frozen=True)
class TrainedRun:
    """A run's newest sound checkpoint, loaded."""

    config: Config
    dataset: Dataset
    model: TwoTower
    """Sharded over the ranks, in evaluation mode, outside any pipeline."""
    step: int
    """Training step of the checkpoint."""


def load_run(path: str | StoragePath, ranks: Ranks, data: str | None = None) -> TrainedRun:
    """Load RUN's best checkpoint on validation, else its newest, onto these ranks. Collective.

    Args:
        data: the dataset's folder now, where it is not where it was in training; or an
            extended one, whose new users and items are unknown to the model.

    Raises:
        Mistake: where there is no run, no finished checkpoint, or the data has changed.
    """
    folder = RunFolder(path)
    run, dataset = together(lambda: open_data(folder, data))  # collective
    config = for_reading(run.config)
    found = newest_sound(folder.checkpoints, ranks, _is_read, best=True)  # collective
    if found is None:
        raise Mistake(
            f"{path} has no finished checkpoint: train it to its first one "
            "(`tandem train ... --resume`)"
        )
    facts = found.facts
    sharded = build_model(config, dataset, ranks, facts.known_rows)  # collective
    state = {"model": {k: v for k, v in sharded.state_dict().items() if _is_read(f"model.{k}")}}
    load(found, state)  # collective
    sharded.load_state_dict(state["model"], strict=False)
    sharded.module.use_averaged_towers()
    sharded.eval()
    return TrainedRun(run.config, dataset, sharded.module, facts.step)


def for_reading(config: Config) -> Config:
    """The same model on whatever machine reads it: nothing that only training needs."""
    return replace(
        config,
        model=replace(config.model, placement="device"),
        loss=replace(config.loss, backend="auto"),
        optimizer=replace(config.optimizer, tables="sgd", table_weight_decay=0.0),
    )


def _is_read(name: str) -> bool:
    """Tables and towers: neither the optimizer's state, nor the queue, nor what is estimated."""
    return name.startswith("model.") and not name.startswith("model.head.task.")


def state_of(model: DistributedModelParallel, optimizer: CombinedOptimizer) -> dict[str, Any]:
    """Nested dict of tensors and ShardedTensors; they are the model's own, not copies."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def restore(
    found: Found,
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    on_bytes: OnBytes,
) -> None:
    """All of a checkpoint, for the run that wrote it to go on. Collective.

    Raises:
        Mistake: where the checkpoint is of another model or optimizer.
    """
    model.module.head.task.correction.restore_buckets(found.facts.streaming_buckets)
    state = state_of(model, optimizer)
    load(found, state, on_bytes)  # collective
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    optimizer.set_optimizer_step(found.facts.step)  # Adam's, which no state dict holds
