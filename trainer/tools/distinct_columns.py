"""How many of a step's columns are different items, expected from the items' counts."""

from __future__ import annotations

import numpy as np

from trainer.base.split_names import count_column
from trainer.config.sections import Config
from trainer.data.parquet import open_parquet
from trainer.data.schema import Dataset


def distinct_share(config: Config, dataset: Dataset) -> float:
    """Share of the columns of a step's rows and draws that are left where each item is one.

    An item is among n draws of a law with a chance of 1 - (1 - q)^n. 1 where items are not made
    one, or nothing is drawn.
    """
    negatives, batch = config.negatives, config.training.global_batch_size
    popular = (batch if negatives.in_batch else 0) + negatives.popularity
    if not negatives.distinct or popular + negatives.uniform == 0:
        return 1.0
    column = count_column(config.data.train_splits)
    with open_parquet(dataset.file("items.parquet")) as file:
        count_I = file.read(columns=[column]).column(0).to_numpy()
    count_n = count_I[count_I > 0].astype(np.float64)
    if not len(count_n):
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):  # the only item there is: log 0
        absent_n = popular * np.log1p(-count_n / count_n.sum())
        absent_n += negatives.uniform * np.log1p(-1 / len(count_n))
    absent_n = np.where(np.isnan(absent_n), 0.0, absent_n)
    return float((1 - np.exp(absent_n)).sum() / (popular + negatives.uniform))
