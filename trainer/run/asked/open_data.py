"""A run's own words and its dataset, opened without its model: no torch."""

from __future__ import annotations

from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.run.folder import RunFolder
from trainer.run.run_facts import RunFacts


def open_data(folder: RunFolder, data: str | None) -> tuple[RunFacts, Dataset]:
    """config.json and the dataset of a run, or the one at `data`.

    Raises:
        Mistake: where there is no run, or the data are not those it was trained on.
    """
    run = folder.read_config()
    dataset = Dataset.load(data or run.named_data)
    if run.dataset_digest not in dataset.lineage:
        raise Mistake(
            f"the data in {dataset.path} is not what {folder.path} was trained on (digest "
            f"{dataset.digest[:12]}, then {run.dataset_digest[:12]}); pass that dataset "
            "by --data, or one made from it by `tandem prepare NEW DATA --append`"
        )
    return run, dataset
