"""A trained run opened again, on any number of ranks: for evaluation, recommendation and export."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.agreement import together
from trainer.build import build_model
from trainer.checkpoint import load, newest_sound
from trainer.config import Config
from trainer.data.schema import Dataset
from trainer.mistake import Mistake
from trainer.model import TwoTower
from trainer.ranks import Ranks
from trainer.run import RunFolder
from trainer.storage import StoragePath


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
    facts, dataset = together(lambda: _open(folder, data))
    config = Config.from_json(facts["config"])
    found = newest_sound(folder.checkpoints, ranks, best=True)  # collective
    if found is None:
        raise Mistake(
            f"{path} has no finished checkpoint: train it to its first one "
            "(`tandem train ... --resume`)"
        )
    checkpoint, checkpoint_facts = found
    sharded = build_model(config, dataset, ranks, checkpoint_facts["known_rows"])  # collective
    sharded.module.head.task.correction.restore_buckets(checkpoint_facts["streaming_buckets"])
    state = {"model": sharded.state_dict()}
    load(checkpoint, state)  # collective
    sharded.load_state_dict(state["model"])
    sharded.module.use_averaged_towers()
    sharded.eval()
    return TrainedRun(config, dataset, sharded.module, checkpoint_facts["step"])


def _open(folder: RunFolder, data: str | None) -> tuple[dict, Dataset]:
    facts = folder.read_config()
    dataset = Dataset.load(data or facts["data"])
    if facts["dataset_digest"] not in (dataset.digest, dataset.parent_digest):
        raise Mistake(
            f"the data in {dataset.path} is not what {folder.path} was trained on (digest "
            f"{dataset.digest[:12]}, then {facts['dataset_digest'][:12]}); pass that dataset "
            "by --data, or one made from it by `tandem prepare --extend`"
        )
    return facts, dataset
